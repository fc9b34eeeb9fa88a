"""What a frozen classifier is worth elsewhere: `medmoco external`.

Nothing is fitted here. Weights, calibration and thresholds are those that the classifier's own validation chose; both
test splits are scored in the same way, and the difference is shown with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import also_in, image_keys, patient_ids
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import load_splits, make_folder
from medmoco.evaluation.leakage.ledger import add_look, ledger_of
from medmoco.evaluation.metrics import auroc as metrics
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.scoring.clinical import Clinical, Judgement, calibration_of, operating_records, subgroups_of
from medmoco.evaluation.scoring.scoring import label_targets
from medmoco.evaluation.scoring.table import span
from medmoco.evaluation.supervised.classifier import load_classifier, run_around
from medmoco.training.runlog import write_json

Record = dict[str, Any]

SIDES = ("internal", "external")


class _Side(NamedTuple):
    """One data set's test split and its scores, (N, L)."""

    name: str
    settings: RunSettings
    split: Split
    scores: Floats


def external(
    settings: RunSettings,
    other: RunSettings,
    folder: Path,
    out: Path,
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Score a classifier on its own test split and on another's; return the table.

    Writes external.json, operating.json, calibration.json, subgroups.json and table.txt to `out`. Both looks are noted
    in the ledger of the run that the classifier folder lies in, or else in `out`.

    Args:
        settings: Of the data that the classifier comes from, and of the protocol.
        other: Of the other data: manifest, root and labels; the classifier's labels must be among them.
        folder: Classifier folder.
        out: Folder for the results.
        log: Told what is being done.

    Raises:
        SettingsError: the other settings do not name the classifier's labels, or `out` cannot be written.
        ManifestError: a manifest cannot be used, or the two test splits share patients or images.
        CheckpointError: the classifier cannot be loaded, or the ledger not written.
        DataError: an image cannot be used.
    """
    classifier = load_classifier(folder)
    for who, tree in zip(SIDES, (settings, other), strict=True):
        _check_labels(who, tree, classifier.labels)
    make_folder(out)
    splits = [load_splits(tree, ["test"])["test"] for tree in (settings, other)]
    _refuse_overlap(settings, splits[1], log)
    sides = []
    for name, tree, split in zip(SIDES, (settings, other), splits, strict=True):
        log("; ".join([f"{name}: {len(split)} images", *split.notices]))
        sides.append(_Side(name, tree, split, classifier.score(split, tree)))
    points = classifier.operating_points
    judgements = {label: Judgement(own, points[label]) for label, own in classifier.calibrations.items()}
    compared = {label: _compare(label, column, sides, settings) for column, label in enumerate(classifier.labels)}
    ledger = ledger_of(str(run_around(folder) or folder), out)
    for side in sides:
        aurocs = {label: record[side.name]["auroc"] for label, record in compared.items()}
        add_look(
            ledger,
            "external",
            side.split,
            side.settings,
            [side.name],
            aurocs,
        )
    clinical = _clinical(sides, judgements, classifier.facts.trained, settings)
    table = _layout(compared, clinical.operating, sides, settings)
    write_json(out / "external.json", compared)
    for name, records in clinical._asdict().items():
        write_json(out / f"{name}.json", records)
    (out / "table.txt").write_text(table, encoding="utf-8")
    return table


def _check_labels(who: str, settings: RunSettings, labels: Sequence[str]) -> None:
    missing = [label for label in labels if label not in settings.data.labels]
    if missing:
        raise SettingsError(
            f"the {who} settings do not name the classifier's label{'s' * (len(missing) > 1)} {', '.join(missing)}"
            f" in data.labels: {', '.join(settings.data.labels) or 'none'}"
        )


def _refuse_overlap(settings: RunSettings, theirs: Split, log: Callable[[str], None]) -> None:
    """Refuse other data that hold files of this data: they are no external test. Ids may agree by chance."""
    own = load_manifest(settings.data, ("train", "val", "test"))
    shared, known = np.zeros((2, len(theirs)), bool)
    ids = patient_ids(theirs)
    for split in own.values():
        shared |= also_in(image_keys(theirs), image_keys(split))
        if ids is not None and (others := patient_ids(split)) is not None:
            known |= also_in(ids, others)
    if known.any():
        log(
            f"{int(known.sum())} of {len(theirs)} external images have a PatientID that the classifier's own data have"
            " too: if it is the same patient, this is not an external test"
        )
    if shared.any() and not settings.evaluate.allow_leakage:
        raise ManifestError(
            f"{int(shared.sum())} of {len(theirs)} external images are files of the classifier's own data: no external"
            " test.\nGive other data, or set evaluate.allow_leakage=true"
        )


def _compare(label: str, column: int, sides: Sequence[_Side], settings: RunSettings) -> Record:
    """Score one label on both sides; the two bootstraps are independent, as the patients are."""
    chosen, draws = settings.evaluate, []
    record: dict[str, Record] = {}
    for number, side in enumerate(sides):
        targets, scores = label_targets(side.split, label), side.scores[:, column]
        draws.append(
            metrics.bootstrap_auroc(
                targets, scores, side.split.patients, draws=chosen.bootstrap, seed=settings.seed + number
            )
        )
        value, known = metrics.auroc(targets, scores), ~np.isnan(targets)
        interval = metrics.share_interval(value, draws[-1])
        record[side.name] = {
            "auroc": metrics.or_none(value),
            "low": metrics.or_none(interval.low),
            "high": metrics.or_none(interval.high),
            "n": int(known.sum()),
            "n_positive": int((targets == 1).sum()),
            "n_patients": int(np.unique(side.split.patients[known]).size),
            "undefined": metrics.undefined(targets),
        }
    internal, outside = (record[name]["auroc"] for name in SIDES)
    interval = metrics.interval(draws[0] - draws[1])
    drop = None if internal is None or outside is None else internal - outside
    return {
        **record,
        "drop": drop,
        "drop_low": metrics.or_none(interval.low),
        "drop_high": metrics.or_none(interval.high),
    }


def _clinical(
    sides: Sequence[_Side], judgements: dict[str, Judgement], trained: str, settings: RunSettings
) -> Clinical:
    """Apply the classifier's own thresholds and calibration to both sides."""
    found = Clinical([], [], [])
    for side in sides:
        for column, (label, judgement) in enumerate(judgements.items()):
            targets, scores = label_targets(side.split, label), side.scores[:, column]
            if metrics.undefined(targets):
                continue
            key = {"label": label, "split": side.name, "method": trained, "encoder": "run"}
            found.operating.extend(
                key | record for record in operating_records(targets, scores, side.split, judgement, settings)
            )
            found.calibration.append(key | calibration_of(targets, scores, judgement, settings.evaluate))
            found.subgroups.extend(key | record for record in subgroups_of(targets, scores, side.split, settings))
    return found


def _layout(
    compared: Mapping[str, Record], operating: Sequence[Record], sides: Sequence[_Side], settings: RunSettings
) -> str:
    counts = [
        f"{side.name} {len(side.split)} images of {np.unique(side.split.patients).size} patients" for side in sides
    ]
    lines = [
        f"the frozen classifier on two test splits: {'; '.join(counts)}",
        f"95 % intervals: {settings.evaluate.bootstrap} draws of patients",
        "",
    ]
    for label, record in compared.items():
        lines.append(label)
        for side in SIDES:
            found = record[side]
            counted = f"{found['n']} images, {found['n_positive']} positive, {found['n_patients']} patients"
            score = found["undefined"] or f"AUROC {found['auroc']:.3f}  {span(found['low'], found['high'])}"
            lines.append(f"  {side:<10}{score}  ({counted})")
        if record["drop"] is not None:
            lines.append(
                f"  {'drop':<10}      {record['drop']:+.3f}  {span(record['drop_low'], record['drop_high'], '+')}"
            )
        for point in (point for point in operating if point["label"] == label):
            lines.append(
                f"  {point['split']}: at the threshold of {100 * point['specificity_wanted']:g} % specificity on val,"
                f" sensitivity {_share(point['sensitivity'])}, specificity {_share(point['specificity'])}"
            )
        lines.append("")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f} %"
