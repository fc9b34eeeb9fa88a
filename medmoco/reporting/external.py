"""The section of a report about data from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medmoco.reporting.blocks import Block, Section, Table, Text, count, with_interval
from medmoco.reporting.curves import calibration_blocks
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import Show, by_label, operating_blocks, subgroup_blocks


def external_section(runs: Sequence[Run]) -> Section:
    """Show what is left of the scores on data from elsewhere."""
    blocks: list[Block] = []
    cells = []
    for run in runs:
        if not run.external:
            words = f"`medmoco external --out {run.name}/external` scores a second manifest with the frozen choice."
            blocks.append(Text(f"{run.name} has no external test: {words}", "missing"))
        for label, record in (run.external or {}).items():
            inside, outside = record["internal"], record["external"]
            cells.append([
                label, run.name,
                with_interval(inside, "auroc", "low", "high"), count(inside.get("n")),
                with_interval(outside, "auroc", "low", "high"), count(outside.get("n")),
                with_interval(record, "drop", "drop_low", "drop_high", sign="+"),
            ])  # fmt: skip
    if cells:
        head = ["label", "run", "internal AUROC", "images", "external AUROC", "images", "drop"]
        blocks.append(Table("The same classifier on its own test split and elsewhere", head, cells))
    files: dict[str, tuple[str, Show]] = {
        "operating": ("Operating points", operating_blocks),
        "calibration": ("Calibration", calibration_blocks),
        "subgroups": ("Subgroups", subgroup_blocks),
    }
    parts = [
        replace(part, title=f"{title}, {part.title}")
        for file, (title, show) in files.items()
        for part in by_label(runs, file, show, "external_scores")
    ]
    return Section("External test", blocks, parts)
