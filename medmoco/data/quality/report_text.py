"""Format the findings of `medmoco check` as aligned text of less than 120 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from medmoco.data.manifest.columns import STUDY, other_name
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.overlap import patient_ids
from medmoco.data.quality.examine import Examined
from medmoco.data.quality.findings import Finding, Provenance, Rows, Shortcut
from medmoco.data.quality.volume_findings import describe_volumes

_DESCRIBING = (STUDY, "ViewPosition", "Sex", "Age", "Laterality")
_WIDTH = 119
_EXAMPLES = 4  # rows listed per finding
_LABELS = 16  # lines of label counts, unless all are requested
_WARNED = 5  # labels named in a warning, unless all are requested


def format_report(
    splits: Sequence[Split],
    rows: Rows,
    files: Examined,
    findings: Sequence[Finding],
    shortcuts: Sequence[Shortcut],
    provenance: Provenance = Provenance(),  # noqa: B008 - it is frozen
    *,
    all_labels: bool = False,
) -> str:
    """Return a report with counts, findings, labels (a few, or all of them), shortcuts and sources."""
    labels, warned = (None, None) if all_labels else (_LABELS, _WARNED)
    present = sorted((one for one in findings if len(one.rows)), key=lambda one: one.severity != "fault")
    absent = [one.kind for one in findings if not len(one.rows)]
    lines = [*_head(splits, rows, files), ""]
    if present:
        width = max(len(one.kind) for one in present)
        lines.append(f"{'severity':<10}{'rows':>9}  {'what':<{width}}  row numbers")
        for one in present:
            line = f"{one.severity:<10}{len(one.rows):>9,}  {one.kind:<{width}}  {_examples(one, rows)}"
            indent = " " * 21
            lines += [line, *textwrap.wrap(one.remark, _WIDTH, initial_indent=indent, subsequent_indent=indent)]
    if absent:
        lines += _wrapped(f"checked and not found: {', '.join(absent)}")
    if splits[0].label_names:
        lines += ["", *_labels(splits, labels), *_single_class(splits, warned), *_shortcuts(shortcuts, warned)]
        lines += _provenance(provenance, warned)
    return "\n".join(lines) + "\n"


def _head(splits: Sequence[Split], rows: Rows, files: Examined) -> Iterator[str]:
    counts = []
    for split in splits:
        patients = "" if patient_ids(split) is None else f" of {np.unique(split.patients).size:,} patients"
        counts.append(f"{split.name} {len(split):,}{patients}")
    yield from _wrapped(f"{rows.own.sum():,} rows: {', '.join(counts)}")
    for notice in (notice for split in splits for notice in split.table_notices):
        yield from _wrapped(notice)
    for number in range(len(splits), len(rows.sources)):
        yield f"{rows.sources[number]} data for comparison: {(rows.source == number).sum():,} rows"
    readable = rows.file[rows.own & files.readable[rows.file]]
    if readable.size and rows.dimensions == 3:
        for line in describe_volumes(rows, files):
            yield from _wrapped(line)
    elif readable.size:
        kinds = Counter(files.formats[at].kind for at in files.format_of[readable])
        low, middle, high = np.percentile(files.sizes[readable], [0, 50, 100], axis=0).round().astype(int)
        spans = [
            f"{side} {low[at]:,} to {high[at]:,} (median {middle[at]:,})" for at, side in enumerate(("height", "width"))
        ]
        types = [f"{count:,} {kind}" for kind, count in kinds.most_common()]
        yield f"files: {', '.join(types)}; {', '.join(spans)} pixels"
    unnamed = [name for at, name in enumerate(rows.sources) if (rows.patient[rows.source == at] < 0).all()]
    if unnamed:
        yield from _wrapped(
            f"no PatientID in {', '.join(unnamed)}: every row counts as its own patient, leakage by patient is not seen"
        )
    meant = {column: other for split in splits for column in _DESCRIBING if (other := _other_name(column, split))}
    if meant:
        each = ", ".join(f'{column}: "{other}"' for column, other in meant.items())
        yield "these columns are not recognised under their names; to use them, set"
        yield f"'data.columns={{{each}}}'"  # not wrapped, for copying


def _other_name(column: str, split: Split) -> str | None:
    return None if column in split.table else other_name(column, split.table.columns, split.label_names)


def _examples(one: Finding, rows: Rows) -> str:
    examples = []
    for source, group in groupby(one.rows[:_EXAMPLES], key=lambda at: rows.source[at]):
        examples.append(f"{rows.sources[source]} {', '.join(str(rows.number[at]) for at in group)}")
    return "; ".join(examples) + (", ..." if len(one.rows) > _EXAMPLES else "")


def _labels(splits: Sequence[Split], most: int | None) -> Iterator[str]:
    """Yield the counts of each label's cells as they are in the file, before any policy."""
    names = splits[0].label_names
    table = [["label", *(split.name for split in splits)]]
    for at, name in enumerate(names[:most]):
        cells = [split.raw_labels[:, at] for split in splits]
        counts = [((cell == 1).sum(), (cell == 0).sum(), (cell == -1).sum(), np.isnan(cell).sum()) for cell in cells]
        table.append([name, *(" / ".join(f"{number:,}" for number in count) for count in counts)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, line in enumerate(table):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        yield text + ("   (positive / negative / uncertain / blank)" if not number else "")
    if len(names[:most]) < len(names):
        yield f"and {len(names[most:])} more labels, in report.txt"


def _single_class(splits: Sequence[Split], most: int | None) -> Iterator[str]:
    """Yield warnings about labels that cannot be scored, after their policies."""
    for split in splits:
        for missing, value in (("positives", 1), ("negatives", 0)):
            names = [
                name
                for name, column in zip(split.label_names, split.labels.T, strict=True)
                if not (column == value).any()
            ]
            if names:
                more = f", and {len(names[most:])} more" if len(names[:most]) < len(names) else ""
                yield from _wrapped(f"warning   no {missing} in {split.name}: {', '.join(names[:most])}{more}")


def _shortcuts(shortcuts: Sequence[Shortcut], most: int | None) -> Iterator[str]:
    strong = [one for one in shortcuts if one.warns]
    for one in strong[:most]:
        on_test = "" if one.on_test is None else f"; {one.on_test:.2f} on test"
        yield from _wrapped(
            f"warning   {one.trait} alone predicts {one.label} with AUROC {one.auroc:.2f} ({one.low:.2f} to "
            f"{one.high:.2f}{on_test}) without the image content; an encoder may learn this shortcut, so compare its "
            "AUROC with this one"
        )
    if len(strong[:most]) < len(strong):
        yield f"warning   size or format predicts {len(strong[most:])} more labels, listed in report.txt"
    weak = [one for one in shortcuts if not one.warns]
    if weak:
        best = max(weak, key=lambda one: one.auroc)
        which = "no label" if len(weak) == len(shortcuts) else "no other label"
        yield f"size or format predicts {which}: at best {best.label} by {best.trait}, AUROC {best.auroc:.2f}"


def _provenance(found: Provenance, most: int | None) -> Iterator[str]:
    """Yield a warning for each label that sources predict, with remedies, and what was tested."""
    strong: dict[str, list[Shortcut]] = {}
    for one in found.shortcuts:
        # Of the letters and numbers in the same ids, the strongest is enough for the screen
        if one.warns and (most is None or one.about not in {other.about for other in strong.get(one.label, ())}):
            strong.setdefault(one.label, []).append(one)
    shown = [*strong.items()][:most]
    for label, traits in shown:
        named = [f"{one.trait}, AUROC {one.auroc:.2f} ({one.low:.2f} to {one.high:.2f})" for one in traits[:most]]
        more = f"; and {len(traits[most:])} more" if len(named) < len(traits) else ""
        yield from _wrapped(f"warning   {label} can be told from {'; '.join(named)}{more}")
    if len(shown) < len(strong):
        yield f"warning   {len(strong) - len(shown)} more labels can be told from sources, listed in report.txt"
    if strong:
        yield from _wrapped(
            "          if the classes of a label come from different sources, an encoder that recognises the source has"
            " a high AUROC without seeing the disease; age may predict a disease, but a number, date or source should"
            " not"
        )
    for remedy in dict.fromkeys(one.remedy for _, traits in shown for one in traits[:most] if one.remedy):
        yield from _wrapped(f"          - {remedy}", 12)
    weak = [one for one in found.shortcuts if one.label not in strong]
    if weak:
        best = max(weak, key=lambda one: one.auroc)
        which = "no other label" if strong else "no label"
        yield from _wrapped(
            f"sources predict {which} well enough for a warning: at best {best.label} from {best.trait}, AUROC"
            f" {best.auroc:.2f}"
        )
    if found.tested:
        columns = [name.removeprefix("column ") for name in found.tested if name.startswith("column ")]
        others = [name for name in found.tested if not name.startswith("column ")]
        more = f" and {len(columns[_LABELS:])} more" if most is not None and len(columns) > _LABELS else ""
        noun = "column" if len(columns) == 1 else "columns"
        listed = [f"{noun} {', '.join(columns[: most and _LABELS])}{more}"] if columns else []
        yield from _wrapped(f"tested as sources: {', '.join(others + listed)}")
    for note in found.notes:
        yield from _wrapped(note)


def _wrapped(text: str, indent: int = 10) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=" " * indent, break_long_words=False)
