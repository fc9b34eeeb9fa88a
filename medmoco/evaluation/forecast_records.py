"""Records of forecasts from label-efficiency curves, with a description and a unit for each field; see `records`."""

from __future__ import annotations

from typing import Annotated

from medmoco.evaluation.records import (
    Area,
    Gap,
    GapHigh,
    GapLow,
    MethodRecord,
    PrimaryRecord,
    Share,
    Text,
    end_of,
    unit_of,
)

LabelledPatients = Annotated[float, unit_of("patients")]


class Forecast(Area, MethodRecord, PrimaryRecord):
    """One record of forecast.json: the score that an inverse power law predicts for more labels than there are."""

    fraction: Annotated[float, unit_of("none")]
    """Number of labelled patients, as a multiple of the training patients; may be above 1."""
    times: Annotated[float, unit_of("none")]
    """Number of labelled patients, as a multiple of those of the largest fraction that was scored."""
    n_train_patients: LabelledPatients
    """Number of labelled patients; images if patients are not known."""
    gain: Gap | None = None
    """Forecast minus the score with the largest fraction."""
    gain_low: GapLow | None = None
    gain_high: GapHigh | None = None


class LabelsNeeded(MethodRecord):
    """One record of labels_needed.json: the labels with which a control would score as the primary encoder does."""

    control: Text
    """Name of the control that needs the labels."""
    fraction: Share
    """Fraction of the training patients whose labels the primary encoder used."""
    n_train_patients: LabelledPatients
    """Number of these patients; images if patients are not known."""
    auroc: Share
    """Score of the primary encoder with them."""
    needed: LabelledPatients | None
    """Number of labelled patients with which the control's curve has this score; `least` and `most` are bounds."""
    needed_low: Annotated[float, end_of("Lower", "patients")] | None
    needed_high: Annotated[float, end_of("Upper", "patients")] | None
    least: LabelledPatients
    """Labelled patients of the smallest fraction; the control needs no more than that if `needed` is equal to it."""
    most: LabelledPatients
    """Most labelled patients to which the curve is extrapolated; the control needs more if `needed` is equal to it."""
    undefined: Text | None = None
    """Why there is no forecast for the control."""
