"""`medmoco external`: external validation of a frozen classifier.

Nothing is fitted: weights, calibration and thresholds come from the classifier's own training and validation splits.
Both test splits are scored in the same way, and the difference is reported with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import also_in, counted, image_keys, patient_ids
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import load_splits, make_folder
from medmoco.evaluation.leakage.ledger import ledger_of, record_test_evaluation
from medmoco.evaluation.metrics.auroc import (
    Floats,
    auroc,
    bootstrap_auroc,
    interval,
    or_none,
    share_interval,
    undefined,
)
from medmoco.evaluation.records import UNNAMED, ExternalScore, OperatingPoint, SideScore
from medmoco.evaluation.results import External
from medmoco.evaluation.scoring.clinical import OperatingPoints, apply_operating_points, join
from medmoco.evaluation.scoring.scoring import Key, label_targets
from medmoco.evaluation.scoring.table import patients_in, span
from medmoco.evaluation.supervised.classifier import load_classifier, run_around
from medmoco.utils.files import PathLike

SIDES = ("internal", "external")


class _Side(NamedTuple):
    """The test split of one data set and its scores, (N, L)."""

    name: str
    settings: RunSettings
    split: Split
    scores: Floats


def external(
    config: ConfigSource,
    other: ConfigSource,
    classifier: PathLike,
    out: PathLike,
    *,
    log: Callable[[str], None] = lambda _: None,
) -> External:
    """Validate a classifier externally: score it on its own test set and on that of other data.

    Both test evaluations are recorded in the ledger of the run that contains the classifier folder, or else in `out`.

    Args:
        config: Settings of the classifier's data and the protocol, see `load_config`.
        other: Settings of the other data: manifest, root and labels, which must include those of the classifier.
        classifier: Folder written by `evaluate` or `finetune`.
        out: Folder in which to save the results.
        log: Receives progress messages.

    Raises:
        SettingsError: the other settings do not name the classifier's labels, or `out` cannot be written.
        ManifestError: a manifest cannot be used, or the two test splits share patients or images.
        CheckpointError: the classifier cannot be loaded, or the ledger not written.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> found = medmoco.external("ours.yaml", "theirs.yaml", "runs/tuned/classifier", "external")  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """
    settings, theirs, out = load(config), load(other), Path(out)
    folder, loaded = Path(classifier), load_classifier(classifier)
    for side, tree in zip(SIDES, (settings, theirs), strict=True):
        _check_labels(side, tree, loaded.labels)
    make_folder(out)
    splits = [load_splits(tree, ["test"])["test"] for tree in (settings, theirs)]
    _refuse_overlap(settings, splits[1], log)
    sides: list[_Side] = []
    for name, tree, split in zip(SIDES, (settings, theirs), splits, strict=True):
        log("; ".join([f"{name}: {len(split)} images", *split.notices]))
        sides.append(_Side(name, tree, split, loaded.score(split, tree)))
    compared = {label: _compare(label, column, sides, settings) for column, label in enumerate(loaded.labels)}
    ledger = ledger_of(str(run_around(folder) or folder), out)
    assert ledger  # `out` is given
    for name, tree, split, _ in sides:
        aurocs = {label: getattr(score, name).auroc for label, score in compared.items()}
        record_test_evaluation(ledger, "external", split, tree, [name], auroc=aurocs)
    clinical = join(
        apply_operating_points(
            OperatingPoints(loaded.calibrations[label], loaded.operating_points[label]),
            Key(label, side.name, loaded.facts.trained, UNNAMED),
            side.scores[:, column],
            side.split,
            settings,
        )
        for side in sides
        for column, label in enumerate(loaded.labels)
    )
    found = External(compared, *clinical, _layout(compared, clinical.operating_points, sides, settings), out)
    found.save(out)
    return found


def _check_labels(side: str, settings: RunSettings, labels: Sequence[str]) -> None:
    missing = [label for label in labels if label not in settings.data.labels]
    if missing:
        raise SettingsError(
            f"the {side} settings do not name the classifier's label{'s' * (len(missing) > 1)} {', '.join(missing)}"
            f" in data.labels: {', '.join(settings.data.labels) or 'none'}"
        )


def _refuse_overlap(settings: RunSettings, other: Split, log: Callable[[str], None]) -> None:
    """Refuse other data with files of the classifier's data, and warn of equal PatientIDs, which may be by chance."""
    shared, known = np.zeros((2, len(other)), bool)
    ids = patient_ids(other)
    for split in load_manifest(settings.data, ("train", "val", "test")).values():
        shared |= also_in(image_keys(other), image_keys(split))
        if ids is not None and (own := patient_ids(split)) is not None:
            known |= also_in(ids, own)
    if known.any():
        log(
            f"{int(known.sum())} of {len(other)} external images have a PatientID that also occurs in the classifier's"
            " own data: if it is the same patient, this is not external validation"
        )
    if shared.any() and not settings.evaluate.allow_leakage:
        raise ManifestError(
            f"{int(shared.sum())} of {len(other)} external images are files of the classifier's own data, so this is"
            " not\nexternal validation. Use other data, or set evaluate.allow_leakage=true"
        )


def _compare(label: str, column: int, sides: Sequence[_Side], settings: RunSettings) -> ExternalScore:
    """Score one label on both test splits, with independent bootstraps, since the patients are independent."""
    chosen, draws, scores = settings.evaluate, [], {}
    for number, side in enumerate(sides):
        targets, own = label_targets(side.split, label), side.scores[:, column]
        draws.append(
            bootstrap_auroc(targets, own, side.split.patients, draws=chosen.bootstrap, seed=settings.seed + number)
        )
        value, known = auroc(targets, own), ~np.isnan(targets)
        low, high, _ = share_interval(value, draws[-1])
        scores[side.name] = SideScore(
            auroc=or_none(value),
            low=or_none(low),
            high=or_none(high),
            n=int(known.sum()),
            n_positive=int((targets == 1).sum()),
            n_patients=int(np.unique(side.split.patients[known]).size),
            undefined=undefined(targets),
        )
    inside, outside = (scores[name].auroc for name in SIDES)
    low, high, _ = interval(draws[0] - draws[1])
    return ExternalScore(
        internal=scores["internal"],
        external=scores["external"],
        drop=None if inside is None or outside is None else inside - outside,
        drop_low=or_none(low),
        drop_high=or_none(high),
    )


def _layout(
    compared: Mapping[str, ExternalScore],
    points: Sequence[OperatingPoint],
    sides: Sequence[_Side],
    settings: RunSettings,
) -> str:
    counts = [f"{side.name} {counted(side.split)}" for side in sides]
    lines = [
        f"the frozen classifier on two test splits: {'; '.join(counts)}",
        f"95 % intervals: {settings.evaluate.bootstrap} draws of patients",
        "",
    ]
    for label, score in compared.items():
        lines.append(label)
        for side, found in (("internal", score.internal), ("external", score.external)):
            scored = f"{found.n} images, {found.n_positive} positive{patients_in(found)}"
            words = found.undefined or f"AUROC {found.auroc:.3f}  {span(found.low, found.high)}"
            lines.append(f"  {side:<10}{words}  ({scored})")
        if score.drop is not None:
            lines.append(f"  {'drop':<10}      {score.drop:+.3f}  {span(score.drop_low, score.drop_high, '+')}")
        for point in (point for point in points if point.label == label):
            lines.append(
                f"  {point.split}: at the threshold of {100 * point.specificity_wanted:g} % specificity on val,"
                f" sensitivity {_share(point.sensitivity)}, specificity {_share(point.specificity)}"
            )
        lines.append("")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f} %"
