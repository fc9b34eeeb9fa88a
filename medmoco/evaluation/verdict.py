"""One sentence that says what pretraining gained: the primary encoder against its strongest control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from medmoco.evaluation.records import PIXELS, UNNAMED, UNTRAINED, CurveDifference, CurvePoint, primary_of
from medmoco.evaluation.scoring.table import MACRO, span

_CONTROLS = {UNTRAINED: "the untrained network", PIXELS: "raw pixels"}


def verdict(points: Sequence[CurvePoint], differences: Sequence[CurveDifference], split: str) -> str:
    """Compare linear probes with the fewest labels, where pretraining should help most.

    The control is the strongest one with these labels, so that the gain is never over a weaker one. Only the first
    label is compared.

    Args:
        points: Scores of a label-efficiency curve.
        differences: Differences between its primary encoder and each control.
        split: Split of the scores, such as test.

    Returns:
        The sentence; empty if the encoder and a control were not both scored.
    """
    label = next((point.label for point in points if point.split == split and point.label != MACRO), None)
    compared = [
        found
        for found in differences
        if (found.label, found.split, found.method) == (label, split, "linear") and found.difference is not None
    ]
    if not compared:
        return ""
    fraction = min(found.fraction for found in compared)
    gains = {found.control: found for found in compared if found.fraction == fraction}
    fewest = {
        point.encoder: point
        for point in points
        if (point.label, point.split, point.method, point.fraction) == (label, split, "linear", fraction)
    }
    own, controls = fewest.get(primary_of(points) or ""), [fewest[name] for name in gains if name in fewest]
    if own is None or not controls:
        return ""
    best = max(controls, key=lambda point: point.auroc or 0.0)
    gain = gains[best.encoder]
    name = "the pretrained encoder" if own.encoder == UNNAMED else PurePath(own.encoder).name
    other = _CONTROLS.get(best.encoder, PurePath(best.encoder).name)
    is_clear = gain.low is not None and gain.high is not None and not gain.low <= 0 <= gain.high
    doubt = "" if is_clear else "; this interval contains 0, so the difference may be due to chance"
    return (
        f"{label}, with the labels of {_patients(own)}: {name} has an AUROC of {own.auroc:.3f} on {split}, {other}"
        f" {best.auroc:.3f}; the difference is {gain.difference:+.3f}"
        f" (95 % interval {span(gain.low, gain.high, '+')}){doubt}."
    )


def _patients(point: CurvePoint) -> str:
    share = f"{100 * point.fraction:g} %"
    if point.n_train_patients is None:
        return f"{share} of the patients"
    what = "images" if point.n_train_patients == point.n_train else "patients"
    return f"{point.n_train_patients:.0f} {what} ({share})"
