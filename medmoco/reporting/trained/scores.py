"""Section of a report with the scores of detection and segmentation runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medmoco.evaluation.scoring.table import MACRO, found_words
from medmoco.evaluation.scoring.trained_records import SegmentationScore
from medmoco.plotting.figures import Estimate
from medmoco.reporting.blocks import NOTHING, Block, Fold, Plot, Section, Table, Text, count, several, with_interval
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import forest_plot, labels_of
from medmoco.reporting.targets import in_unit
from medmoco.reporting.trained.results import SEGMENTATION, TrainedDifference, TrainedScore

_DETECTION = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "froc": "FROC", "auroc": "AUROC"}
_IN_UNIT = ("hd95", "volume_bias")
_LIMITS = "limits"
_NAMES = {
    "run": "pretrained encoder",
    "file": "encoder from a file",
    "import": "imported encoder",
    "other": "other run",
}

Cell = tuple[float | None, float | None, float | None]


def trained_section(runs: Sequence[Run]) -> Section:
    """Show scores and paired differences; without content if no run is of detection or segmentation."""
    shown = [run for run in runs if _scores(run)]
    blocks: list[Block] = [text for run in shown for text in _protocol(run)]
    if forest := _forest(shown):
        blocks.append(forest)
    splits = {score.split for run in shown for score in _scores(run)}
    first, *others = sorted(splits, key=lambda split: (split != "test", split)) or [""]
    sections = [
        Section(f"{class_words(label)}, {first}", list(_label(shown, label, first))) for label in _labels(shown, first)
    ]
    for split in others:
        content = [block for label in _labels(shown, split) for block in _label(shown, label, split)]
        sections.append(Section(f"Split {split}", [Fold(f"Scores on {split}, which also chose the epoch", content)]))
    return Section("Scores of detection and segmentation", blocks, sections)


def class_words(label: str) -> str:
    """Return the name to show for a class."""
    return "Mean over classes" if label == MACRO else label


def encoder_words(encoder: str) -> str:
    """Return the name to show for the kind of an encoder's source."""
    return _NAMES.get(encoder, encoder)


def _labels(runs: Sequence[Run], split: str) -> list[str]:
    return labels_of(score for run in runs for score in _scores(run) if score.split == split)


def _scores(run: Run) -> Sequence[TrainedScore]:
    return run.trained.scores if run.trained else ()


def _protocol(run: Run) -> Iterable[Text]:
    """Yield what to know about the scores of a run: what they count, and whether they are biased."""
    scores, start = _scores(run), f"{run.name}: "
    what = "each image counts once; " if run.trained and run.trained.network == SEGMENTATION else ""
    yield Text(f"{start}{what}intervals are 95 %, from {count(scores[0].bootstrap)} bootstrap draws of patients.")
    if "test" not in {score.split for score in scores}:
        yield Text(
            f"{start}only the validation set was scored, which also chose the epoch, so the scores are optimistic."
            " To evaluate on the test set, repeat the command with `--resume --test`.",
            "warning",
        )
        return
    yield Text(f"{start}the validation set also chose the epoch, so only scores on test are unbiased.")
    if run.ledger is None:
        yield Text(f"{start}the test evaluation is recorded in the ledger of the encoder's run.")
    if run.settings.get("evaluate.allow_leakage"):
        yield Text(
            f"{start}evaluate.allow_leakage was set, so test may share patients or images with the training data.",
            "warning",
        )


def _forest(runs: Sequence[Run]) -> Plot | None:
    drawn, splits, colours = list[Estimate](), list[str](), dict[str, int]()
    for label in labels_of(score for run in runs for score in _scores(run)):
        for run in runs:
            split = run.trained.split if run.trained else ""
            for score in _scores(run):
                if (score.label, score.split) == (label, split) and score.metric in ("dice", "ap"):
                    name = _name(run, score.encoder, runs)
                    colour = colours.setdefault(name, len(colours))
                    drawn.append(Estimate(class_words(label), name, score.value, score.low, score.high, colour))
                    splits.append(split)
    metrics = {"Dice" if run.trained and run.trained.network == SEGMENTATION else "AP" for run in runs}
    name = " or ".join(sorted(metrics))
    return forest_plot(drawn, f"{name} on {' and '.join(dict.fromkeys(splits))}, with 95 % intervals", name)


def _name(run: Run, encoder: str, runs: Sequence[Run]) -> str:
    return encoder_words(encoder) if len(runs) == 1 else f"{encoder_words(encoder)} ({run.name})"


def _label(runs: Sequence[Run], label: str, split: str) -> Iterable[Block]:
    """Yield the table of each run's scores of one label, with the differences from another run."""
    for run in runs:
        own = [score for score in _scores(run) if (score.label, score.split) == (label, split)]
        if not own:
            continue
        heads = _heads(run, own)
        rows = [
            _row(_name(run, encoder, runs), _cells(score for score in own if score.encoder == encoder), heads)
            for encoder in dict.fromkeys(score.encoder for score in own)
        ]
        found = [d for d in run.trained.differences if (d.label, d.split) == (label, split)] if run.trained else []
        if found:
            name = f"{encoder_words(found[0].encoder)} minus {encoder_words(found[0].control)}"
            rows.append(_row(name, _cells(found), heads, sign="+"))
        of = f", {run.name}" if len(runs) > 1 else ""
        yield Table(
            f"{class_words(label)} on {split}: {_counts(own[0])}{of}", ["", *heads.values()], rows, decisive=True
        )
        yield from _found(run, own, runs)


def _found(run: Run, scores: Sequence[TrainedScore], runs: Sequence[Run]) -> Iterable[Text]:
    """Yield in how many images each encoder finds the class, if that says more than its scores."""
    first = {score.encoder: found_words(score) for score in scores if isinstance(score, SegmentationScore)}
    words = [f"{_name(run, encoder, runs)}: {found}" for encoder, found in first.items() if found]
    if words:
        yield Text(f"{'; '.join(words)}.", "note")


def _heads(run: Run, scores: Sequence[TrainedScore]) -> dict[str, str]:
    """Return the titles of the columns by metric."""
    metrics = {score.metric for score in scores}
    if not run.trained or run.trained.network != SEGMENTATION:
        return {metric: title for metric, title in _DETECTION.items() if metric in metrics}
    own = {score.metric: score for score in scores if isinstance(score, SegmentationScore)}
    surface, length = own["surface_dice"], own["hd95"].unit
    heads = {
        "dice": "Dice",
        "surface_dice": f"surface Dice at {surface.tolerance:g} {surface.tolerance_unit}",
        "hd95": f"HD95, {length}",
    }
    if "volume_bias" not in own:  # the mean over classes has none
        return heads
    unit = own["volume_bias"].unit
    what = "volume" if unit == "mL" else "area"
    return heads | {
        "volume_bias": f"{what} bias, {unit}",
        _LIMITS: f"95 % limits of agreement, {unit}",
        "concordance": f"concordance of {what}s",
    }


def _cells(records: Iterable[TrainedScore | TrainedDifference]) -> dict[str, Cell]:
    """Return values with their intervals by metric; limits of agreement are one cell."""
    cells: dict[str, Cell] = {}
    for record in records:
        value = record.difference if isinstance(record, TrainedDifference) else record.value
        cells[record.metric] = (value, record.low, record.high)
    if "limit_low" in cells:
        cells[_LIMITS] = (None, cells["limit_low"][0], cells["limit_high"][0])
    return cells


def _row(name: str, cells: Mapping[str, Cell], heads: Iterable[str], sign: str = "") -> list[str]:
    row = [name]
    for metric in heads:
        value, low, high = cells.get(metric, (None, None, None))
        if metric == _LIMITS:
            row.append(
                NOTHING if low is None or high is None else f"{in_unit(low, sign='+')} to {in_unit(high, sign='+')}"
            )
        elif metric in _IN_UNIT:
            row.append(in_unit(value, low, high, sign="+" if metric == "volume_bias" else sign))
        else:
            row.append(with_interval(value, low, high, sign=sign))
    return row


def _counts(score: TrainedScore) -> str:
    text = f"{several(score.n, 'image')} of {several(score.n_patients, 'patient')}"
    if not isinstance(score, SegmentationScore):
        return f"{text}, {count(score.n_boxes)} boxes in {several(score.n_positive, 'image')}"
    if score.n_empty:
        what = "any class" if score.label == MACRO else "it"
        text += f"; {several(score.n_empty, 'image')} without {what} {'does' if score.n_empty == 1 else 'do'} not count"
    return text
