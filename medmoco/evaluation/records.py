"""What the result files hold: one class for each kind of record, which writes it and reads it.

A file is a JSON list of plain objects (external.json: an object by label), so `pandas.read_json` reads it too. Every
object carries the version of its format; files from before there were versions still load, newer ones are refused.
A field that does not apply to a record is left out of its object, and None is what could not be computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from medmoco.errors import CheckpointError
from medmoco.utils.files import replacing

VERSION = 1

UNTRAINED, PIXELS = "untrained", "pixels"
CONTROLS = (UNTRAINED, PIXELS)
"""Names of the controls that are always scored too: the untrained network and the raw pixels."""
UNNAMED = "run"
"""How an encoder is shown that the user gave no name. It is not treated differently from any other."""


def _check_version(version: int) -> int:
    if version > VERSION:
        raise PydanticCustomError("newer_version", "version {version}", {"version": version})
    return version


def _unit(name: str) -> Any:
    return Field(json_schema_extra={"unit": name})


Text = Annotated[str, _unit("text")]
Flag = Annotated[bool, _unit("yes or no")]
Share = Annotated[float, _unit("0 to 1")]
Difference01 = Annotated[float, _unit("-1 to 1")]
Real = Annotated[float, _unit("none")]
LogOdds = Annotated[float, _unit("log-odds")]
Images = Annotated[int, _unit("images")]
Patients = Annotated[int, _unit("patients")]
Count = Annotated[int, _unit("count")]


class Part(BaseModel):
    """Base of records and of what is inside them."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Record(Part):
    """Base of every record."""

    version: Annotated[int, _unit("none"), AfterValidator(_check_version)] = VERSION
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
    """A score, which is marked where it is that of the encoder in question."""

    primary: Flag | None = None
    """Whether this encoder is the one in question; the others are there for comparison."""


class MethodRecord(EncoderRecord):
    """A record about one encoder as one method uses it."""

    method: Text
    """linear (probe), knn or finetune."""


class Overlap(Part):
    """What a split shares with other data; None is unknown."""

    patients: Patients | None
    """Patients of the split that are in the other data too."""
    images: Images
    """Images of the split that are in the other data too, by file or by pixels."""


class Leakage(Part):
    """What a split shares with the data that was learned from; None is unknown."""

    pretraining: Overlap | None
    """Shared with the images that the encoder was pretrained on."""
    train: Overlap | None
    """Shared with train."""


class Score(MethodRecord, PrimaryRecord):
    """One score of scores.json, with 95 % intervals from draws of patients."""

    auroc: Share | None
    """Area under the receiver operating characteristic; mean over the draws of labels."""
    auroc_low: Share | None
    """Lower end of its interval."""
    auroc_high: Share | None
    """Upper end of its interval."""
    size: Annotated[int, _unit("pixels")] | None = None
    """Side of the input images."""
    bootstrap: Count | None = None
    """Draws of patients behind the intervals."""
    bootstrap_left_out: Count | None = None
    """Draws that held one class only and were left out."""
    where: Text | None = None
    """Condition that chose the rows, or None for all."""
    label_fraction: Share | None = None
    """Share of the training patients whose labels were used."""
    draws: Count | None = None
    """Draws of these patients."""
    neighbours: Count | None = None
    """Neighbours that vote in kNN; None for other methods."""
    seed: Count | None = None
    """Seed of all draws."""
    n: Images
    """Labelled images."""
    n_positive: Images
    """Positive images; for macro, those with any positive label."""
    n_patients: Patients
    """Patients of the labelled images."""
    average_precision: Share | None
    """Average precision, not interpolated."""
    ap_low: Share | None = None
    """Lower end of its interval."""
    ap_high: Share | None = None
    """Upper end of its interval."""
    delong_low: Share | None = None
    """Lower end of DeLong's interval of the AUROC, where every patient has one image."""
    delong_high: Share | None = None
    """Upper end of DeLong's interval of the AUROC."""
    undefined: Text | None = None
    """Why there is no score."""
    flag: Text | None = None
    """A sign that the score may have learned nothing."""
    note: Text | None = None
    """What was out of the ordinary in the fits."""
    auroc_of_draws: tuple[Share, ...] = ()
    """AUROC of each draw of labels."""
    strength: tuple[Real, ...] = ()
    """Regularisation that validation chose, for each draw of labels."""
    n_train: tuple[Images, ...] = ()
    """Training images whose label was used, for each draw."""
    n_train_patients: tuple[Patients, ...] = ()
    """Patients of these images, for each draw."""
    label_policy: dict[str, Text] = {}
    """What uncertain and missing label cells count as."""
    n_labels: Count | None = None
    """Labels, of the macro average."""
    n_labels_defined: Count | None = None
    """Labels with a defined score, over which the macro average is taken."""
    leakage: Leakage | None = None
    """What the split shares with the data that was learned from."""


class Compared(MethodRecord):
    """The encoder in question minus a control, on the same images and draws of patients."""

    control: Text
    """Name of the encoder that is subtracted."""
    difference: Difference01 | None
    """Difference of the AUROCs."""
    low: Difference01 | None
    """Lower end of its 95 % interval."""
    high: Difference01 | None
    """Upper end of its 95 % interval."""
    p: Share | None = None
    """Two-sided p of the paired bootstrap."""
    p_holm: Share | None = None
    """p, adjusted by Holm for all comparisons of the same split and method."""


class Difference(Compared):
    """One comparison of differences.json."""

    excludes_zero: Flag | None = None
    """Whether 0 lies outside the interval."""
    delong_p: Share | None = None
    """p of DeLong's test, where every patient has one image."""
    bootstrap_left_out: Count | None = None
    """Draws in which the difference was not defined."""
    n: Images | None = None
    """Labelled images."""
    n_positive: Images | None = None
    """Positive images."""
    n_patients: Patients | None = None
    """Patients of the labelled images."""
    undefined: Text | None = None
    """Why there is no score to compare."""
    where: Text | None = None
    """Condition that chose the rows, or None for all."""
    label_fraction: Share | None = None
    """Share of the training patients whose labels were used."""
    draws: Count | None = None
    """Draws of these patients."""
    bootstrap: Count | None = None
    """Draws of patients behind the interval."""
    seed: Count | None = None
    """Seed of all draws."""
    leakage: Leakage | None = None
    """What the split shares with the data that was learned from."""


class Decisions(Part):
    """Decisions at a threshold, counted, with shares and their 95 % intervals; None for a share without cases."""

    threshold: LogOdds | None
    """Scores at or above it decide for positive."""
    tp: Images
    """True positives."""
    fp: Images
    """False positives."""
    tn: Images
    """True negatives."""
    fn: Images
    """False negatives."""
    sensitivity: Share | None
    """Share of the positives that are decided for positive."""
    sensitivity_low: Share | None = None
    """Lower end of its interval."""
    sensitivity_high: Share | None = None
    """Upper end of its interval."""
    specificity: Share | None
    """Share of the negatives that are decided for negative."""
    specificity_low: Share | None = None
    """Lower end of its interval."""
    specificity_high: Share | None = None
    """Upper end of its interval."""
    ppv: Share | None
    """Positive predictive value, at the prevalence of the split."""
    ppv_low: Share | None = None
    """Lower end of its interval."""
    ppv_high: Share | None = None
    """Upper end of its interval."""
    npv: Share | None
    """Negative predictive value, at the prevalence of the split."""
    npv_low: Share | None = None
    """Lower end of its interval."""
    npv_high: Share | None = None
    """Upper end of its interval."""


class OperatingPoint(Decisions, MethodRecord):
    """One record of operating.json: what a threshold chosen on validation does on a split."""

    specificity_wanted: Share
    """Specificity on validation for which the threshold was chosen."""


class Bin(Part):
    """Images with similar predicted probability."""

    low: Share | None
    """Lowest probability."""
    high: Share | None
    """Highest probability."""
    n: Images
    """Images in the bin."""
    predicted: Share | None
    """Mean probability."""
    observed: Share | None
    """Share of positives."""
    observed_low: Share | None
    """Lower end of the 95 % interval of this share."""
    observed_high: Share | None
    """Upper end of the 95 % interval of this share."""


class Reliability(Part):
    """How well probabilities agree with outcomes."""

    n: Images
    """Labelled images."""
    brier: Share | None
    """Brier score, 0 at best."""
    ece: Share | None
    """Expected calibration error over bins of equal counts, 0 at best."""
    bins: tuple[Bin, ...]
    """From the lowest probabilities to the highest."""
    slope: Real | None
    """Calibration slope, 1 at best."""
    intercept: LogOdds | None
    """Calibration in the large, 0 at best."""


class CalibrationScore(MethodRecord):
    """One record of calibration.json."""

    kind: Text
    """platt or temperature, fitted on validation."""
    before: Reliability
    """Of the scores as they are, taken as log-odds."""
    after: Reliability
    """After calibration."""


class GroupScore(Part):
    """The AUROC within one group of patients, with its 95 % interval."""

    column: Text
    """Column of the manifest."""
    group: Text
    """Value in this column, or a band of ages."""
    n: Images
    """Labelled images."""
    n_positive: Images
    """Positive images."""
    n_patients: Patients
    """Patients of the labelled images."""
    auroc: Share | None
    """Area under the receiver operating characteristic."""
    auroc_low: Share | None
    """Lower end of its interval."""
    auroc_high: Share | None
    """Upper end of its interval."""
    undefined: Text | None
    """Why there is no AUROC."""
    bootstrap_left_out: Count | None = None
    """Draws that held one class only and were left out."""


class Subgroup(GroupScore, MethodRecord):
    """One record of subgroups.json."""


class CurvePoint(MethodRecord, PrimaryRecord):
    """One record of curve.json: a score at a share of the labels."""

    fraction: Share
    """Share of the training patients whose labels were used."""
    draws: Count | None = None
    """Draws of these patients."""
    n_train: Annotated[float, _unit("images")] | None = None
    """Training images whose label was used, mean over draws."""
    n_train_patients: Annotated[float, _unit("patients")] | None = None
    """Patients of these images, mean over draws."""
    auroc: Share | None
    """Area under the receiver operating characteristic, mean over draws."""
    auroc_low: Share | None
    """Lower end of its 95 % interval."""
    auroc_high: Share | None
    """Upper end of its 95 % interval."""
    average_precision: Share | None = None
    """Average precision, mean over draws."""
    undefined: Text | None = None
    """Why there is no score."""
    n: Images | None = None
    """Labelled images."""
    n_positive: Images | None = None
    """Positive images."""
    n_patients: Patients | None = None
    """Patients of the labelled images."""


class CurveDifference(Compared):
    """One record of curve_differences.json."""

    fraction: Share
    """Share of the training patients whose labels were used."""


class SideScore(Part):
    """The AUROC on one data set's test split, with its 95 % interval."""

    auroc: Share | None
    """Area under the receiver operating characteristic."""
    low: Share | None
    """Lower end of its interval."""
    high: Share | None
    """Upper end of its interval."""
    n: Images
    """Labelled images."""
    n_positive: Images | None = None
    """Positive images."""
    n_patients: Patients | None = None
    """Patients of the labelled images."""
    undefined: Text | None = None
    """Why there is no AUROC."""


class ExternalScore(Record):
    """One label of external.json: a frozen classifier on its own test split and on another's."""

    internal: SideScore
    """On the data that the classifier comes from."""
    external: SideScore
    """On the other data."""
    drop: Difference01 | None
    """Internal minus external AUROC."""
    drop_low: Difference01 | None
    """Lower end of its 95 % interval."""
    drop_high: Difference01 | None
    """Upper end of its 95 % interval."""


class DetectionScore(PrimaryRecord):
    """One record of a detection run's scores.json."""

    metric: Text
    """ap, ap50, ap75, froc, auroc, or sensitivity_at_ followed by false positives per image."""
    value: Share | None
    """The metric's value."""
    low: Share | None
    """Lower end of its 95 % interval."""
    high: Share | None
    """Upper end of its 95 % interval."""
    bootstrap: Count
    """Draws of patients behind the interval."""
    bootstrap_left_out: Count
    """Draws in which the metric was not defined."""
    n: Images
    """Images."""
    n_patients: Patients
    """Patients of the images."""
    n_boxes: Annotated[int, _unit("boxes")]
    """Boxes of the label."""
    n_positive: Images
    """Images with such a box."""


class DetectionDifference(EncoderRecord):
    """One record of a detection run's differences.json: one detector minus another, paired by draws."""

    metric: Text
    """See `DetectionScore`."""
    control: Text
    """Name of the encoder that is subtracted."""
    difference: Difference01 | None
    """Difference of the values."""
    low: Difference01 | None
    """Lower end of its 95 % interval."""
    high: Difference01 | None
    """Upper end of its 95 % interval."""
    bootstrap_left_out: Count
    """Draws in which the difference was not defined."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


def primary_of(records: Sequence[EncoderRecord]) -> str | None:
    """Return the name of the encoder in question: the one marked, else the first that is not a control."""
    encoders = dict.fromkeys(record.encoder for record in records)
    marked = (record.encoder for record in records if isinstance(record, PrimaryRecord) and record.primary)
    return next(chain(marked, (name for name in encoders if name not in CONTROLS), encoders), None)


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each record; fields of fields become columns such as "leakage.train.images"."""
    frame = pd.json_normalize([record.model_dump(exclude={"version"}) for record in records])
    first = [name for name in ("label", "split", "method", "encoder") if name in frame]
    return frame[[*first, *frame.columns.drop(first)]]


def write_records(file: Path, records: Sequence[Record] | Mapping[str, Record]) -> None:
    """Write a list of records, or records by name, so that a reader never sees half of it."""
    if isinstance(records, Mapping):
        _write(file, {name: _as_json(record) for name, record in records.items()})
    else:
        _write(file, [_as_json(record) for record in records])


def write_record(file: Path, record: Record) -> None:
    """Write a single record."""
    _write(file, _as_json(record))


def _write(file: Path, content: Any) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _as_json(record: Record) -> dict[str, Any]:
    return {"version": record.version} | record.model_dump(exclude_unset=True)


def read_records(file: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    """Read a list of records.

    Raises:
        CheckpointError: the file is not there, damaged, or written by a newer version.
    """
    found: tuple[AnyRecord, ...] = _read(file, TypeAdapter(tuple[kind, ...]))  # type: ignore[valid-type]
    return found


def read_named_records(file: Path, kind: type[AnyRecord]) -> dict[str, AnyRecord]:
    """Read records by name; raises as `read_records`."""
    found: dict[str, AnyRecord] = _read(file, TypeAdapter(dict[str, kind]))  # type: ignore[valid-type]
    return found


def read_record(file: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Read a single record; raises as `read_records`."""
    found: AnyRecord = _read(file, TypeAdapter(kind))
    return found


def _read(file: Path, adapter: TypeAdapter[Any]) -> Any:
    name = f"{file.parent.name}/{file.name}"
    try:
        return adapter.validate_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        findings = error.errors(include_url=False, include_input=False)
        newer = next((each for each in findings if each["type"] == "newer_version"), None)
        if newer:
            raise CheckpointError(
                f"{name} was written by a newer medmoco: its records have {newer['msg']}, and this one reads up to "
                f"{VERSION}.\nUpdate medmoco, or evaluate again with this one."
            ) from None
        place = ", ".join(str(part) for part in findings[0]["loc"])
        raise CheckpointError(
            f"{name} is damaged: {f'{place}: ' if place else ''}{findings[0]['msg']}.\n"
            "Delete it, or run the command again that writes it."
        ) from None
