"""Sentences that say what pretraining gained, or that a score means nothing: the primary encoder against its controls.

They rest on the paired intervals of differences.json and curve_differences.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Literal, TypeVar

from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import (
    FROM_SCRATCH,
    PIXELS,
    UNNAMED,
    UNTRAINED,
    Compared,
    CurveDifference,
    CurvePoint,
    Difference,
    MethodRecord,
    Part,
    Score,
    Text,
    primary_of,
    unit_of,
)
from medmoco.evaluation.scoring.table import MACRO, span
from medmoco.evaluation.scoring.trained_records import (
    SegmentationCurveDifference,
    SegmentationDifference,
    SegmentationPoint,
)
from medmoco.evaluation.target_records import RegressionDifference

_CONTROLS = {UNTRAINED: "the untrained network", PIXELS: "raw pixels", FROM_SCRATCH: "training from scratch"}
AnyDifference = Compared | RegressionDifference | SegmentationDifference
_AS_WELL = 0.05
"""Gain in AUROC over raw pixels that the interval has to rule out before they count as equally good."""
_HIGH = 0.8
"""AUROC of raw pixels from which a label is easy, or the images contain a shortcut. Source: docs/statistics.md."""


class Verdict(Part):
    """What the scores of one label show about the primary encoder."""

    label: Text
    """Label of the manifest."""
    split: Text
    """val or test."""
    kind: Annotated[Literal["gain", "loss", "unclear", "pixels", "chance"], unit_of("text")]
    """gain or loss: clearly better or worse than the strongest control; unclear: the interval contains 0; pixels: raw
    pixels do as well as every encoder, and well; chance: no AUROC is clearly above 0.5."""
    text: Text
    """The verdict in one or two sentences, without the label."""

    def __str__(self) -> str:
        return f"{self.label} on {self.split}: {self.text[0].lower()}{self.text[1:]}"


def verdicts(scores: Sequence[Score], differences: Sequence[Difference]) -> tuple[Verdict, ...]:
    """Judge the linear probes of every label, on test if it was evaluated, else on val.

    Args:
        scores: Scores of an evaluation.
        differences: Differences between its primary encoder and each other one.
    """
    split, primary, found = shown_split(scores), primary_of(scores) or "", list[Verdict]()
    for label in dict.fromkeys(score.label for score in scores if score.label != MACRO):
        own, gains = _linear_probes(scores, differences, label, split)
        if primary in own and gains:
            kind, text = _judge(own, gains, primary)
            found.append(Verdict(label=label, split=split, kind=kind, text=text))
    return tuple(found)


def _judge(
    scores: dict[str, Score], gains: dict[str, Difference], primary: str
) -> tuple[Literal["gain", "loss", "unclear", "pixels", "chance"], str]:
    if all(score.auroc_low is not None and score.auroc_low <= 0.5 for score in scores.values()):
        return "chance", "No encoder is clearly better than chance: every 95 % interval of an AUROC contains 0.5."
    name, pixels = name_of(primary), scores.get(PIXELS)
    if pixels and PIXELS in gains and (pixels.auroc or 0) >= _HIGH and _do_as_well(pixels, gains[PIXELS], scores):
        return "pixels", (
            f"Raw pixels ({pixels.auroc:.3f}) do as well as every encoder: {name} minus raw pixels is"
            f" {_with_interval(gains[PIXELS])}. Suspect a shortcut, or an easy label: `medmoco check` tests whether"
            " sources predict it, evaluate.where restricts scores to one source, and `medmoco curve` shows whether"
            " pretraining helps with fewer labels."
        )
    control = _strongest(scores, gains)
    gain, compared = gains[control], f"{name} minus {name_of(control)}, the strongest control, is"
    kind = reading(gain)
    start = "No evidence of a difference" if kind == "unclear" else f"A clear {kind}"
    return kind, f"{start}: {compared} {_with_interval(gain)}."


def _do_as_well(pixels: Score, gain: Difference, scores: dict[str, Score]) -> bool:
    """Return whether no encoder is better than raw pixels: the primary one by its interval, others by their AUROCs."""
    if gain.low is None or gain.high is None or gain.low > 0 or gain.high > _AS_WELL:
        return False
    best = max(score.auroc or 0.0 for score in scores.values())
    return best <= (pixels.auroc_high or pixels.auroc or 0.0)


def is_clear(found: AnyDifference) -> bool:
    """Return whether the interval of a difference excludes 0."""
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def reading(found: AnyDifference) -> Literal["gain", "loss", "unclear"]:
    """Return what a difference shows, by its interval."""
    if not is_clear(found):
        return "unclear"
    return "gain" if (found.difference or 0) > 0 else "loss"


def _with_interval(found: Compared | SegmentationDifference) -> str:
    return f"{found.difference:+.3f} (95 % interval {span(found.low, found.high, '+')})"


def name_of(encoder: str) -> str:
    """Return the name of an encoder in prose."""
    return "the pretrained encoder" if encoder == UNNAMED else _CONTROLS.get(encoder, PurePath(encoder).name)


def curve_verdict(points: Sequence[CurvePoint], differences: Sequence[CurveDifference], split: str) -> str:
    """Return `verdict`, and a second sentence if a gain with the fewest labels is not seen with the most."""
    few, most = (_against_strongest(points, differences, split, choose) for choose in (min, max))
    first = verdict(points, differences, split)
    if not few or not most or not is_clear(few[2]) or (few[2].difference or 0) < 0 or is_clear(most[2]):
        return first
    return (
        f"{first} With the labels of {patients_of(most[0])}, there is no evidence of a difference from"
        f" {name_of(most[1].encoder)}: {_with_interval(most[2])}; the gain is only with few labels."
    )


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
    found = _against_strongest(points, differences, split, min)
    if found is None:
        return ""
    own, best, gain = found
    doubt = "" if is_clear(gain) else "; this interval contains 0, so the difference may be due to chance"
    return (
        f"{own.label}, with the labels of {patients_of(own)}: {name_of(own.encoder)} has an AUROC of {own.auroc:.3f} on"
        f" {split}, {name_of(best.encoder)} {best.auroc:.3f}; the difference is {_with_interval(gain)}{doubt}."
    )


def _against_strongest(
    points: Sequence[CurvePoint],
    differences: Sequence[CurveDifference],
    split: str,
    choose: Callable[[Iterable[float]], float],
) -> tuple[CurvePoint, CurvePoint, CurveDifference] | None:
    """Compare the first label at one fraction."""
    label = next((point.label for point in points if point.split == split and point.label != MACRO), "")
    compared = [
        found for found in differences if _key(found) == (label, split, "linear") and found.difference is not None
    ]
    if not compared:
        return None
    fraction = choose(found.fraction for found in compared)
    return against_strongest(
        [point for point in points if point.fraction == fraction],
        [found for found in compared if found.fraction == fraction],
        label, split,
    )  # fmt: skip


AnyScore = TypeVar("AnyScore", Score, CurvePoint)
AnyGain = TypeVar("AnyGain", Difference, CurveDifference)


def against_strongest(
    scores: Sequence[AnyScore], differences: Sequence[AnyGain], label: str, split: str
) -> tuple[AnyScore, AnyScore, AnyGain] | None:
    """Return the linear probes of the primary encoder and of its strongest control, and their difference.

    Args:
        scores: Scores, all with the same fraction of labels.
        differences: Differences between the primary encoder and each control, with this fraction.
        label: Label to compare.
        split: Split to compare.
    """
    found, gains = _linear_probes(scores, differences, label, split)
    own = found.get(primary_of(scores) or "")
    if own is None or not gains:
        return None
    control = _strongest(found, gains)
    return own, found[control], gains[control]


def _linear_probes(
    scores: Sequence[AnyScore], differences: Sequence[AnyGain], label: str, split: str
) -> tuple[dict[str, AnyScore], dict[str, AnyGain]]:
    """Return the defined scores by encoder, and the defined differences by control, of controls with a score."""
    wanted = (label, split, "linear")
    found = {score.encoder: score for score in scores if _key(score) == wanted and score.auroc is not None}
    gains = {
        gain.control: gain
        for gain in differences
        if _key(gain) == wanted and gain.difference is not None and gain.control in found
    }
    return found, gains


def _strongest(scores: Mapping[str, Score | CurvePoint], gains: Mapping[str, Compared]) -> str:
    """Return the control with the highest AUROC."""
    return max(gains, key=lambda control: scores[control].auroc or 0.0)


def _key(record: MethodRecord) -> tuple[str, str, str]:
    return record.label, record.split, record.method


def dice_verdict(
    points: Sequence[SegmentationPoint], differences: Sequence[SegmentationCurveDifference], split: str
) -> str:
    """Compare segmentations with the fewest masks, and add a sentence if a gain is not seen with the most.

    It is about the mean over classes, or the only class, and the control with the best Dice.

    Args:
        points: Scores of a label-efficiency curve.
        differences: Differences between its primary encoder and each control.
        split: Split of the scores, such as test.

    Returns:
        The sentences; empty if the encoder and a control were not both scored.
    """
    few, most = (against_best_dice(points, differences, split, choose) for choose in (min, max))
    if not few or not most:
        return ""
    own, best, gain = few
    doubt = "" if is_clear(gain) else "; this interval contains 0, so the difference may be due to chance"
    what = "Mean over classes" if own.label == MACRO else own.label
    text = (
        f"{what}, with the masks of {patients_of(own)}: {name_of(own.encoder)} has a Dice of {own.dice:.3f} on {split},"
        f" {name_of(best.encoder)} {best.dice:.3f}; the difference is {_with_interval(gain)}{doubt}."
    )
    if reading(gain) == "gain" and not is_clear(most[2]):
        text += (
            f" With the masks of {patients_of(most[0])}, there is no evidence of a difference from"
            f" {name_of(most[1].encoder)}: {_with_interval(most[2])}; the gain is only with few masks."
        )
    return text


def against_best_dice(
    points: Sequence[SegmentationPoint],
    differences: Sequence[SegmentationCurveDifference],
    split: str,
    choose: Callable[[Iterable[float]], float],
) -> tuple[SegmentationPoint, SegmentationPoint, SegmentationCurveDifference] | None:
    """Return the primary encoder, the control with the best Dice, and their difference, at one fraction."""
    label = next((point.label for point in reversed(points) if point.split == split), "")  # the mean comes last
    gains = {
        (found.fraction, found.control): found
        for found in differences
        if (found.split, found.label, found.metric) == (split, label, "dice") and found.difference is not None
    }
    if not gains:
        return None
    fraction = choose(fraction for fraction, _ in gains)
    at = [point for point in points if (point.split, point.label, point.fraction) == (split, label, fraction)]
    best = max((point for point in at if (fraction, point.encoder) in gains), key=lambda point: point.dice or 0.0)
    own = next(point for point in at if point.primary)
    return own, best, gains[fraction, best.encoder]


def patients_of(point: CurvePoint | SegmentationPoint) -> str:
    """Return the patients whose labels or masks were used, in words."""
    share = f"{100 * point.fraction:g} %"
    if point.n_train_patients is None:
        return f"{share} of the patients"
    what = "images" if point.n_train_patients == point.n_train else "patients"
    return f"{point.n_train_patients:,.0f} {what} ({share})"
