"""Records of classes and of numeric targets, with a description and a unit for each field; see `records`."""

from __future__ import annotations

from typing import Annotated

from medmoco.evaluation.records import (
    Flag,
    High,
    Images,
    Low,
    MethodRecord,
    Part,
    Patients,
    PrimaryRecord,
    Protocol,
    Real,
    Share,
    Text,
    end_of,
    unit_of,
)

RIDGE = "ridge"
"""Name of the method of numeric targets."""
TRAINING_MEAN = "training mean"
"""Name of the control that predicts the mean of the training targets for every image."""

Cell = Annotated[float, unit_of("images")]
Value = Annotated[float, unit_of("that of the target")]
ValueLow = Annotated[float, end_of("Lower", "that of the target")]
ValueHigh = Annotated[float, end_of("Upper", "that of the target")]
RealLow = Annotated[float, end_of("Lower", "none")]
RealHigh = Annotated[float, end_of("Upper", "none")]


class ClassReport(Part):
    """Measures of one class, from the confusion matrix."""

    name: Text
    """Name of the class."""
    precision: Share | None
    """Fraction of the images predicted to be of the class that are; None if there are none."""
    recall: Share | None
    """Fraction of the images of the class that are predicted to be; None if there are none."""
    f1: Share | None
    """Harmonic mean of precision and recall."""
    support: Images
    """Images of the class."""


class _TargetScore(Protocol, MethodRecord, PrimaryRecord):
    """Base of scores of classes and numeric targets."""

    @property
    def fraction(self) -> float:
        """Fraction of the training patients whose labels were used."""
        return 1.0 if self.label_fraction is None else self.label_fraction


class ClassScore(_TargetScore):
    """One record of classes.json: accuracies of one encoder and method; `label` is the column of the classes."""

    n: Images
    """Images with a class."""
    n_patients: Patients
    """Patients of these images."""
    top1: Share | None
    """Fraction of the images whose highest score is that of their class."""
    top1_low: Low | None
    top1_high: High | None
    balanced_accuracy: Share | None
    """Mean recall of the classes that have images."""
    balanced_accuracy_low: Low | None
    balanced_accuracy_high: High | None
    undefined: Text | None = None
    """Why there are no accuracies."""
    classes: tuple[ClassReport, ...]
    """Measures of each class."""
    confusion: tuple[tuple[Cell, ...], ...]
    """Images by true class (rows) and predicted class (columns); mean over the draws of labels."""


class RegressionScore(_TargetScore):
    """One record of regression.json: errors of one encoder; `label` is the column of the target."""

    n: Images
    """Images with a value."""
    n_patients: Patients
    """Patients of these images."""
    r2: Real | None
    """Coefficient of determination, 1 for perfect predictions; mean over the draws of labels."""
    r2_low: RealLow | None
    r2_high: RealHigh | None
    mae: Value | None
    """Mean absolute error; mean over the draws of labels."""
    mae_low: ValueLow | None
    mae_high: ValueHigh | None
    undefined: Text | None = None
    """Why there is no R2."""
    note: Text | None = None
    """Remarks on the fits."""
    strength: tuple[Real, ...] = ()
    """Inverse penalty C chosen on validation, for each draw of labels."""
    n_train: tuple[Images, ...] = ()
    """Training images whose value was used, for each draw."""
    n_train_patients: tuple[Patients, ...] = ()
    """Patients of these images, for each draw."""


class RegressionDifference(Protocol, MethodRecord):
    """One record of regression_differences.json: the primary encoder minus a control, on the same draws of patients."""

    metric: Text
    """r2 or mae; better are a positive difference of R2 and a negative one of the mean absolute error."""
    control: Text
    """Name of the encoder that is subtracted, or "training mean"."""
    difference: Value | None
    """Difference; R2 has no unit."""
    low: ValueLow | None
    high: ValueHigh | None
    excludes_zero: Flag | None = None
    """Whether 0 lies outside the interval."""
    p: Share | None = None
    """Two-sided p-value of the paired bootstrap."""
    p_holm: Share | None = None
    """p-value adjusted by Holm's method for all comparisons of the same split and metric."""
