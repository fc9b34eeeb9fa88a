"""Records of detection and segmentation runs, and of the label efficiency of segmentation."""

from __future__ import annotations

from typing import Annotated

from medmoco.evaluation.records import (
    Count,
    EncoderRecord,
    Gap,
    GapHigh,
    GapLow,
    High,
    Images,
    Low,
    MethodRecord,
    Patients,
    PrimaryRecord,
    Share,
    Text,
    end_of,
    unit_of,
)

Distance = Annotated[float, unit_of("mm, or pixels")]
Value = Annotated[float, unit_of("see unit")]
ValueLow = Annotated[float, end_of("Lower", "see unit")]
ValueHigh = Annotated[float, end_of("Upper", "see unit")]


class DetectionScore(PrimaryRecord):
    """One record of a detection run's scores.json."""

    metric: Text
    """ap, ap50, ap75, froc, auroc, or sensitivity_at_ followed by false positives per image."""
    value: Share | None
    """Value of the metric."""
    low: Low | None
    high: High | None
    bootstrap: Count
    """Bootstrap draws of patients for the interval."""
    bootstrap_left_out: Count
    """Draws in which the metric was not defined."""
    n: Images
    """Images."""
    n_patients: Patients
    """Patients of the images."""
    n_boxes: Annotated[int, unit_of("boxes")]
    """Boxes of the label."""
    n_positive: Images
    """Images with a box of the label."""


class DetectionDifference(EncoderRecord):
    """One record of a detection run's differences.json: one detector minus another, paired by draws."""

    metric: Text
    """See `DetectionScore`."""
    control: Text
    """Name of the encoder that is subtracted."""
    difference: Gap | None
    """Difference of the values."""
    low: GapLow | None
    high: GapHigh | None
    bootstrap_left_out: Count
    """Draws in which the difference was not defined."""


class SegmentationScore(PrimaryRecord):
    """One record of a segmentation run's scores.json; `label` is the class, and "macro" the mean over classes."""

    metric: Text
    """dice or surface_dice (0 to 1), hd95, concordance of volumes (-1 to 1), or volume_bias, or limit_low or limit_high
    of agreement."""
    unit: Text | None
    """Unit of value, low and high: mm or pixels of hd95; mL, mm2 or pixels of volumes and areas; None of the others."""
    tolerance: Distance | None
    """Distance up to which surfaces agree; None for other metrics than surface_dice."""
    tolerance_unit: Text | None
    """Unit of the tolerance, that of hd95."""
    value: Value | None
    """Mean over images; for limits and concordance, of all images together."""
    low: ValueLow | None
    high: ValueHigh | None
    bootstrap: Count
    """Bootstrap draws of patients for the interval."""
    bootstrap_left_out: Count
    """Draws in which the metric was not defined."""
    n: Images
    """Images with the class in either mask; for macro, with any class."""
    n_patients: Patients
    """Patients of these images."""
    n_missed: Images
    """Images that show the class, but in which it was not found; for macro, at least one class."""
    n_false: Images
    """Images that do not show the class, but in which it was found; for macro, at least one class."""
    n_empty: Images
    """Images with the class in neither mask, which do not count."""


class SegmentationDifference(EncoderRecord):
    """One record of a segmentation run's differences.json: one run minus another."""

    metric: Text
    """See `SegmentationScore`."""
    unit: Text | None
    """See `SegmentationScore`."""
    control: Text
    """Name of the encoder that is subtracted."""
    difference: Value | None
    """Difference of the two scores."""
    low: ValueLow | None
    high: ValueHigh | None
    bootstrap_left_out: Count
    """Draws in which the difference was not defined."""
    n: Images
    """Images with the class in the true mask or in either prediction; for macro, with any class."""
    n_patients: Patients
    """Patients of these images."""


class SegmentationPoint(MethodRecord, PrimaryRecord):
    """One record of a curve's segmentation.json: scores with the masks of a fraction of the patients."""

    fraction: Share
    """Fraction of the training patients whose masks were used."""
    draws: Count
    """Draws of these patients, with a training run for each."""
    n_train: Annotated[float, unit_of("images")]
    """Training images with a mask, mean over draws."""
    n_train_patients: Annotated[float, unit_of("patients")]
    """Patients of these images, mean over draws."""
    dice: Share | None
    """Dice coefficient, mean over images and draws."""
    dice_low: Low | None
    dice_high: High | None
    surface_dice: Share | None
    """Surface Dice, mean over images and draws."""
    surface_dice_low: Low | None
    surface_dice_high: High | None
    tolerance: Distance
    """Distance up to which surfaces agree."""
    tolerance_unit: Text
    """Its unit."""
    bootstrap: Count
    """Bootstrap draws of patients for the intervals."""
    n: Images
    """Images with the class in the true mask or in that of any draw; for macro, with any class."""
    n_patients: Patients
    """Patients of these images."""
    n_missed: Annotated[float, unit_of("images")]
    """Images that show the class, but in which it was not found; mean over draws."""
    n_false: Annotated[float, unit_of("images")]
    """Images that do not show the class, but in which it was found; mean over draws."""


class SegmentationCurveDifference(SegmentationDifference):
    """One record of a curve's segmentation_differences.json: the primary encoder minus another one, on equal draws."""

    fraction: Share
    """Fraction of the training patients whose masks were used."""
