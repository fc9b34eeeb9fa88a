"""Records of results: a class for each kind, with a description and a unit for each field.

`record_files` writes and reads them. None is a value that could not be computed, or that an older version lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

VERSION = 1
CONTROLS = UNTRAINED, PIXELS = "untrained", "pixels"  # always scored: the untrained network and raw pixels
FROM_SCRATCH = "from scratch"
"""Name of a randomly initialised encoder in a segmentation network, which is trained with it."""
UNNAMED = "run"
"""Name of an encoder to which the user gave none; it has no special meaning."""


def _check_version(version: int) -> int:
    if version > VERSION:
        raise ValueError(f"version {version}")
    return version


def unit_of(name: str) -> Any:
    """Return the field of a number with a unit."""
    return Field(json_schema_extra={"unit": name})


def end_of(name: str, unit: str) -> Any:
    """Return the field of the lower or upper end of an interval."""
    return Field(description=f"{name} end of the 95 % interval.", json_schema_extra={"unit": unit})


Text = Annotated[str, unit_of("text")]
Flag = Annotated[bool, unit_of("yes or no")]
Share = Annotated[float, unit_of("0 to 1")]
Low = Annotated[float, end_of("Lower", "0 to 1")]
High = Annotated[float, end_of("Upper", "0 to 1")]
Gap = Annotated[float, unit_of("-1 to 1")]
GapLow = Annotated[float, end_of("Lower", "-1 to 1")]
GapHigh = Annotated[float, end_of("Upper", "-1 to 1")]
Real = Annotated[float, unit_of("none")]
LogOdds = Annotated[float, unit_of("log-odds")]
Images = Annotated[int, unit_of("images")]
Patients = Annotated[int, unit_of("patients")]
Count = Annotated[int, unit_of("count")]


class Part(BaseModel):
    """Base of records and of their parts."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Record(Part):
    """Base of every record."""

    version: Annotated[int, unit_of("none"), AfterValidator(_check_version)] = VERSION
    """Version of the record's format."""


class EncoderRecord(Record):
    """A record about one encoder."""

    label: Text
    """Label of the manifest; "macro" is the mean over labels."""
    split: Text
    """val or test; in external validation internal or external."""
    encoder: Text
    """Name of the encoder."""


class PrimaryRecord(EncoderRecord):
    """A score, with a mark for the primary encoder."""

    primary: Flag | None = None
    """Whether this is the primary encoder; the others are controls."""
    preprocessing: Text | None = None
    """Size and normalisation of the encoder's images, if they are not those of the primary encoder."""


class MethodRecord(EncoderRecord):
    """A record about one encoder and one method."""

    method: Text
    """linear (probe), knn or finetune; ridge for numeric targets, segment for masks."""


class Overlap(Part):
    """Overlap of a split with other data; None if unknown."""

    patients: Patients | None
    """Patients of the split that are also in the other data."""
    images: Images
    """Images of the split that are also in the other data, as the same file or the same pixels."""


class Leakage(Part):
    """Overlap of a split with training data; None if unknown."""

    pretraining: Overlap | None
    """Overlap with the images on which the encoder was pretrained."""
    train: Overlap | None
    """Overlap with train."""


class Counts(Part):
    """Counts of the data behind a score."""

    n: Images
    """Labelled images."""
    n_positive: Images
    """Positive images; for macro, those with any positive label."""
    n_patients: Patients
    """Patients of the labelled images."""


class Area(Part):
    """An AUROC."""

    auroc: Share | None
    """Area under the receiver operating characteristic; mean over the draws of labels."""
    auroc_low: Low | None
    auroc_high: High | None
    undefined: Text | None = None
    """Why there is no score."""


class Protocol(Part):
    """How a score was computed."""

    bootstrap: Count | None = None
    """Bootstrap draws of patients for the intervals."""
    bootstrap_left_out: Count | None = None
    """Draws in which the score was not defined."""
    where: Text | None = None
    """Condition by which rows were selected; None if all were used."""
    label_fraction: Share | None = None
    """Fraction of the training patients whose labels were used."""
    draws: Count | None = None
    """Draws of these patients."""
    seed: Count | None = None
    """Seed of all draws."""
    leakage: Leakage | None = None
    """Overlap of the split with training data."""


class Score(Protocol, Area, Counts, MethodRecord, PrimaryRecord):
    """One score of scores.json, with 95 % intervals from draws of patients."""

    size: Annotated[int, unit_of("pixels")] | None = None
    """Side of the input images."""
    neighbours: Count | None = None
    """Neighbours that vote in kNN; None for other methods."""
    average_precision: Share | None
    """Average precision, without interpolation."""
    ap_low: Low | None = None
    ap_high: High | None = None
    delong_low: Low | None = None
    """Lower end of DeLong's interval of the AUROC, if every patient has one image."""
    delong_high: High | None = None
    """Upper end of DeLong's interval of the AUROC."""
    flag: Text | None = None
    """A sign that nothing may have been learned."""
    note: Text | None = None
    """Remarks on the fits."""
    auroc_of_draws: tuple[Share, ...] = ()
    """AUROC of each draw of labels."""
    strength: tuple[Real, ...] = ()
    """Inverse regularisation strength C chosen on validation, for each draw of labels."""
    n_train: tuple[Images, ...] = ()
    """Training images whose label was used, for each draw."""
    n_train_patients: tuple[Patients, ...] = ()
    """Patients of these images, for each draw."""
    label_policy: dict[str, Text] = {}
    """Meaning of uncertain and missing label cells."""
    class_column: Text | None = None
    """Column of the classes, if the label is a class of images; the others are its negatives."""
    n_labels: Count | None = None
    """Number of labels, for the macro average."""
    n_labels_defined: Count | None = None
    """Number of labels with a defined score, which the macro average includes."""


class Compared(MethodRecord):
    """The primary encoder minus another one, on the same images and draws of patients."""

    control: Text
    """Name of the encoder that is subtracted."""
    difference: Gap | None
    """Difference of the AUROCs."""
    low: GapLow | None
    high: GapHigh | None
    p: Share | None = None
    """Two-sided p-value of the paired bootstrap."""
    p_holm: Share | None = None
    """p-value adjusted by Holm's method for all comparisons of the same split and method."""


class Difference(Protocol, Counts, Compared):
    """One comparison of differences.json."""

    excludes_zero: Flag | None = None
    """Whether 0 lies outside the interval."""
    delong_p: Share | None = None
    """p-value of DeLong's test, if every patient has one image."""
    undefined: Text | None = None
    """Why there is no score to compare."""


class Decisions(Part):
    """Confusion matrix at a threshold, with its rates and their 95 % intervals; None for a rate without cases."""

    threshold: LogOdds | None
    """Scores at or above it are positive predictions."""
    tp: Images
    """True positives."""
    fp: Images
    """False positives."""
    tn: Images
    """True negatives."""
    fn: Images
    """False negatives."""
    sensitivity: Share | None
    """Fraction of the positives that are predicted positive."""
    sensitivity_low: Low | None = None
    sensitivity_high: High | None = None
    specificity: Share | None
    """Fraction of the negatives that are predicted negative."""
    specificity_low: Low | None = None
    specificity_high: High | None = None
    ppv: Share | None
    """Positive predictive value, at the prevalence of the split."""
    ppv_low: Low | None = None
    ppv_high: High | None = None
    npv: Share | None
    """Negative predictive value, at the prevalence of the split."""
    npv_low: Low | None = None
    npv_high: High | None = None


class OperatingPoint(Decisions, MethodRecord):
    """One record of operating.json: decisions on a split at a threshold chosen on validation."""

    specificity_wanted: Share
    """Specificity on validation for which the threshold was chosen."""


class Bin(Part):
    """Images with similar predicted probabilities."""

    low: Share | None
    """Lowest probability."""
    high: Share | None
    """Highest probability."""
    n: Images
    """Images in the bin."""
    predicted: Share | None
    """Mean probability."""
    observed: Share | None
    """Fraction of positives."""
    observed_low: Low | None
    observed_high: High | None


class Reliability(Part):
    """Agreement of probabilities with outcomes."""

    n: Images
    """Labelled images."""
    brier: Share | None
    """Brier score; 0 is best."""
    ece: Share | None
    """Expected calibration error over bins of equal counts; 0 is best."""
    bins: tuple[Bin, ...]
    """Bins from the lowest probabilities to the highest."""
    slope: Real | None
    """Calibration slope; 1 is best."""
    intercept: LogOdds | None
    """Calibration in the large; 0 is best."""


class CalibrationScore(MethodRecord):
    """One record of calibration.json."""

    kind: Text
    """platt or temperature, fitted on validation."""
    before: Reliability
    """Before calibration, with the scores as log-odds."""
    after: Reliability
    """After calibration."""


class GroupScore(Area, Counts):
    """The AUROC within one group of patients."""

    column: Text
    """Column of the manifest."""
    group: Text
    """Value in this column, or a band of ages."""
    bootstrap_left_out: Count | None = None
    """Draws with only one class, which were left out."""


class Subgroup(GroupScore, MethodRecord):
    """One record of subgroups.json."""


class CurvePoint(Area, Counts, MethodRecord, PrimaryRecord):
    """One record of curve.json: a score for a fraction of the labels."""

    fraction: Share
    """Fraction of the training patients whose labels were used."""
    draws: Count | None = None
    """Draws of these patients."""
    n_train: Annotated[float, unit_of("images")] | None = None
    """Training images whose label was used, mean over draws."""
    n_train_patients: Annotated[float, unit_of("patients")] | None = None
    """Patients of these images, mean over draws."""
    average_precision: Share | None = None
    """Average precision, mean over draws."""


class CurveDifference(Compared):
    """One record of curve_differences.json."""

    fraction: Share
    """Fraction of the training patients whose labels were used."""


class SideScore(Counts):
    """The AUROC on the test split of one data set."""

    auroc: Share | None
    """Area under the receiver operating characteristic."""
    low: Low | None
    high: High | None
    undefined: Text | None = None
    """Why there is no AUROC."""


class ExternalScore(Record):
    """One label of external.json: a frozen classifier on its own test split and on that of other data."""

    internal: SideScore
    """On the test split of the classifier's data."""
    external: SideScore
    """On the test split of the other data."""
    drop: Gap | None
    """Internal minus external AUROC."""
    drop_low: GapLow | None
    drop_high: GapHigh | None


def primary_of(records: Sequence[EncoderRecord]) -> str | None:
    """Return the name of the primary encoder: the marked one, else the first that is not a control."""
    encoders = dict.fromkeys(record.encoder for record in records)
    marked = (record.encoder for record in records if isinstance(record, PrimaryRecord) and record.primary)
    return next(iter([*marked, *(name for name in encoders if name not in CONTROLS), *encoders]), None)
