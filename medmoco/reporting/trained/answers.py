"""The main result of a segmentation run, or of a label-efficiency curve of segmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import FROM_SCRATCH
from medmoco.evaluation.scoring.trained_records import SegmentationDifference
from medmoco.evaluation.verdict import against_best_dice, dice_verdict, name_of, reading
from medmoco.reporting.blocks import APART, SPLITS, Answer, number, span
from medmoco.reporting.runs import Run
from medmoco.reporting.trained.results import SEGMENTATION
from medmoco.reporting.trained.scores import class_words, encoder_words


def segmentation_answers(runs: Sequence[Run]) -> Iterable[Answer]:
    """Yield what each run shows: its curve with the fewest masks, and its difference from another run."""
    for run in runs:
        of = f" of {run.name}" if len(runs) > 1 else ""
        yield from _of_curve(run, of)
        yield from _of_run(run, of)


def _of_curve(run: Run, of: str) -> Iterable[Answer]:
    points, differences = run.curve_segmentation or (), run.curve_segmentation_differences or ()
    split = shown_split(points)
    if found := against_best_dice(points, differences, split, min):
        own, control, gain = found
        yield _answer(
            reading(gain), name_of(own.encoder) + of, name_of(control.encoder), (gain.difference, gain.low, gain.high),
            dice_verdict(points, differences, split),
        )  # fmt: skip


def _of_run(run: Run, of: str) -> Iterable[Answer]:
    trained = run.trained
    if trained is None or trained.network != SEGMENTATION:
        return
    split = trained.split
    gains = [d for d in trained.differences if isinstance(d, SegmentationDifference)]
    own = [d for d in gains if (d.split, d.metric) == (split, "dice")]
    if not own or own[-1].difference is None:
        return
    gain = own[-1]  # the mean over classes, if there are several
    dice = {(s.encoder, s.label): s.value for s in trained.scores if (s.split, s.metric) == (split, "dice")}
    fraction = run.settings.get("segmentation.label_fraction", 1.0)
    masks = "all masks" if fraction == 1 else f"the masks of {100 * fraction:g} % of the training patients"
    words = {name: _in_prose(name) for name in (gain.encoder, gain.control)}
    text = (
        f"{class_words(gain.label)} on {SPLITS.get(split, split)}, with {masks}: the Dice is"
        f" {number(dice.get((gain.encoder, gain.label)))} for {words[gain.encoder]}, and"
        f" {number(dice.get((gain.control, gain.label)))} for {words[gain.control]}."
    )
    interval = (gain.difference, gain.low, gain.high)
    yield _answer(reading(gain), words[gain.encoder] + of, words[gain.control], interval, text)


def _in_prose(encoder: str) -> str:
    return "training from scratch" if encoder == FROM_SCRATCH else f"the {encoder_words(encoder)}"


def _answer(
    kind: str, name: str, control: str, gain: tuple[float | None, float | None, float | None], text: str
) -> Answer:
    title = f"{name[0].upper()}{name[1:]} {APART[kind]} {control}"
    value, low, high = gain
    return Answer(kind, title, number(value, sign="+"), span(low, high, sign="+"), text, "Dice")
