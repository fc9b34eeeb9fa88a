"""The section of a report about external validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medmoco.reporting.blocks import Block, Section, Table, Text, count, with_interval
from medmoco.reporting.curves import calibration_blocks
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import by_label, operating_blocks, subgroup_blocks


def external_section(runs: Sequence[Run]) -> Section:
    """Compare the scores of a frozen classifier on its own and on other data."""
    blocks: list[Block] = []
    cells = []
    for run in runs:
        if not run.external:
            words = f"`medmoco external --out {run.name}/external` scores the frozen classifier on a second manifest."
            blocks.append(Text(f"{run.name} has no external validation: {words}", "missing"))
        for label, score in (run.external or {}).items():
            inside, outside = score.internal, score.external
            cells.append([
                label, run.name,
                with_interval(inside.auroc, inside.low, inside.high), count(inside.n),
                with_interval(outside.auroc, outside.low, outside.high), count(outside.n),
                with_interval(score.drop, score.drop_low, score.drop_high, sign="+"),
            ])  # fmt: skip
    if cells:
        head = ["label", "run", "internal AUROC", "images", "external AUROC", "images", "drop"]
        blocks.append(Table("The same classifier on its own test split and on other data", head, cells))
    parts = {
        "Operating points": by_label(runs, lambda scores: scores.operating, operating_blocks, is_external=True),
        "Calibration": by_label(runs, lambda scores: scores.calibration, calibration_blocks, is_external=True),
        "Subgroups": by_label(runs, lambda scores: scores.subgroups, subgroup_blocks, is_external=True),
    }
    named = [replace(part, title=f"{title}, {part.title}") for title, found in parts.items() for part in found]
    return Section("External validation", blocks, named)
