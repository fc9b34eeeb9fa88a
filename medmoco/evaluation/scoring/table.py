"""The table of scores: plain text, under 120 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.overlap import counted, patient_ids
from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.records import Difference, Score

MACRO = "macro"
"""Name of the mean over labels, used like a label."""


def heading(source: Mapping[str, Any], width: int, splits: Mapping[str, Split], settings: RunSettings) -> list[str]:
    """Return the lines above the blocks: the encoder, the images and the protocol.

    Args:
        source: `Provenance.record` of the primary encoder.
        width: Number of features.
        splits: train and the scored splits.
        settings: Settings of the evaluation.
    """
    chosen = settings.evaluate
    size = chosen.size or settings.views.size
    views = "images and their mirror images" if chosen.mirror else "images"
    what = ", ".join(f"{name} {value}" for name, value in source.items())
    counts = [f"{name} {counted(split)}" for name, split in splits.items()]
    drawn = "images" if all(patient_ids(split) is None for split in splits.values()) else "patients"
    draws = f", {chosen.label_draws} draws" if chosen.label_fraction < 1 else ""
    return [
        f"{settings.model.backbone} ({what}), {width} frozen features, {views} {size} x {size}, seed {settings.seed}",
        "; ".join(counts) + (f"; where {chosen.where}" if chosen.where else ""),
        f"labels of {100 * chosen.label_fraction:g} % of the training {drawn}{draws}; strength chosen on val; "
        f"95 % intervals: {chosen.bootstrap} draws of {drawn}",
    ]


def layout(
    scores: Sequence[Score], differences: Sequence[Difference], head: Sequence[str], notes: Sequence[str]
) -> str:
    """Return scores, ordered by split and label, as text: a block per split and label, a line per method and encoder.

    `head` are the lines above the blocks, and `notes` those below them.
    """
    against = {(d.label, d.split, d.method, d.control): d for d in differences}
    labels = {score.label for score in scores}
    width = name_width(score.encoder for score in scores)
    lines = [*head, ""]
    for (_, label), group in groupby(scores, lambda score: (score.split, score.label)):
        if label == MACRO and len(labels) == 2:
            continue  # the mean over one label repeats it
        rows = list(group)
        lines += _block_head(rows, width)
        for row in rows:
            difference = against.get((label, row.split, row.method, row.encoder))
            lines.append(f"  {row.method:<8}{row.encoder:<{width}}{_cells(row, difference)}".rstrip())
        lines.append("")
    return "\n".join([*lines, *_notes(scores), *notes]) + "\n"


def name_width(names: Iterable[str]) -> int:
    """Return the width of a column of encoder names."""
    return max(12, 2 + max(map(len, names)))


def _block_head(rows: Sequence[Score], width: int) -> list[str]:
    first = rows[0]
    if first.label == MACRO:
        remark = f"mean of {first.n_labels_defined} of {first.n_labels} labels"
    else:
        remark = ", ".join(f"{cell}: {policy}" for cell, policy in first.label_policy.items())
    if first.bootstrap_left_out and not first.undefined:
        remark += f"; {first.bootstrap_left_out} of {first.bootstrap} draws had one class and were left out"
    counts = f"{first.n} images, {first.n_positive} positive"
    if first.n_patients != first.n:  # otherwise each image has its own patient, or patients are unknown
        counts += f", {first.n_patients} patients"
    return [
        f"{first.split}: {first.label}  ({counts}; {remark})",
        *(f"  ! {line}" for line in leak_lines({first.split: first.leakage})),
        f"  {'method':<8}{'encoder':<{width}}{'AUROC':>7}   {'95 % interval':<17}{'avg. precision':<17}"
        f"{first.encoder} minus control, 95 % interval",
    ]


def _cells(row: Score, difference: Difference | None) -> str:
    if row.undefined:
        return f"  {row.undefined}"
    mark = "!" if row.flag else " "
    text = f"{row.auroc:>7.3f}{mark}  {span(row.auroc_low, row.auroc_high, ''):<17}"
    text += f"{row.average_precision:<17.3f}"
    if difference and difference.difference is not None:
        text += f"{difference.difference:+.3f}  {span(difference.low, difference.high, '+')}"
    return text


def span(low: float | None, high: float | None, sign: str = "") -> str:
    """Return an interval as text; bounds of None mean that there is none."""
    return "no interval" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _notes(scores: Sequence[Score]) -> list[str]:
    """Return notes on the scores and their marks."""
    lines = []
    if any(score.split == "val" for score in scores):
        lines.append("the linear probe's strength was also chosen on val; only test scores are unbiased")
    for score in scores:
        name = f"{score.split}, {score.label}, {score.method}, {score.encoder}"
        if score.flag:
            lines.append(f"! {name}: {score.flag}; possibly nothing was learned")
        if score.note:
            lines.append(f"{name}: {score.note}")
    return lines
