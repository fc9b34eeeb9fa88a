"""The section of a report about external validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medmoco.reporting.blocks import Section, Table, count, with_interval
from medmoco.reporting.curves import calibration_blocks
from medmoco.reporting.runs import Run, missing
from medmoco.reporting.scores import by_label, operating_blocks, subgroup_blocks


def external_section(runs: Sequence[Run]) -> Section:
    """Compare the scores of a frozen classifier on the internal and the external test set."""
    words = "{run} has no external validation: `medmoco external --out {run}/external` scores a frozen classifier."
    blocks = missing(runs, lambda run: not run.external, words)
    cells = []
    for run in runs:
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
        blocks.append(Table("The frozen classifier on the internal and the external test set", head, cells))
    parts = {
        "Operating points": by_label(runs, lambda scores: scores.operating, operating_blocks, is_external=True),
        "Calibration": by_label(runs, lambda scores: scores.calibration, calibration_blocks, is_external=True),
        "Subgroups": by_label(runs, lambda scores: scores.subgroups, subgroup_blocks, is_external=True),
    }
    named = [replace(part, title=f"{title}, {part.title}") for title, found in parts.items() for part in found]
    return Section("External validation", blocks, named)
