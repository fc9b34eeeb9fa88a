"""Sections of a report about scores: with intervals, at operating points, in subgroups, over label shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any

from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.scoring.table import MACRO
from medmoco.plotting.figures import forest_figure, method_words
from medmoco.reporting.blocks import (
    NOTHING,
    Block,
    Fold,
    Plot,
    Section,
    Table,
    Text,
    count,
    number,
    p_value,
    several,
    unbroken,
    where_words,
    with_interval,
)  # fmt: skip
from medmoco.reporting.runs import Run, Scores

Record = dict[str, Any]
Rows = Sequence[tuple[Run, Record]]
Show = Callable[[Sequence[Run], Rows], Iterable[Block]]

OWN = "run"
"""The name that a run's encoder has in its own files."""

_AUROC = ("auroc", "auroc_low", "auroc_high")
_NUMBERS = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}


def encoder_name(run: Run, encoder: str, runs: Sequence[Run]) -> str:
    """Return how an encoder is called: a run's own by the run, its controls by themselves where there is one run."""
    name = PurePath(encoder).name
    if encoder == OWN:
        return run.name
    return name if len(runs) == 1 else f"{name} ({run.name})"


def method_of(records: Sequence[Record]) -> str:
    """Return the method that plots show: the linear probe, or what else there is."""
    methods = [record["method"] for record in records]
    return "linear" if "linear" in methods or not methods else methods[0]


def labels_of(records: Iterable[Record]) -> list[str]:
    """Return the labels in their order; the mean over labels last, and only where it is one."""
    labels = list(dict.fromkeys(record["label"] for record in records))
    named = [label for label in labels if label != MACRO]
    return [*named, MACRO] if MACRO in labels and len(named) > 1 else named


def label_words(label: str) -> str:
    """Return a label, or what the mean over labels is called."""
    return "Mean over labels" if label == MACRO else label


# ---- scores ----


def scores_section(runs: Sequence[Run]) -> Section:
    """Show every score with its interval, beside its controls."""
    blocks: list[Block] = [_no_scores(run) for run in runs if not run.evaluation.scores]
    scored = [run for run in runs if run.evaluation.scores]
    if not scored:
        return Section("Scores", blocks)
    rows = [(run, record) for run in scored for record in run.evaluation.scores or []]
    splits = sorted({record["split"] for _, record in rows}, key=lambda split: (split != "test", split))
    shown, *others = splits
    blocks += [Text(line, "warning") for line in _leaks(rows)]
    blocks.append(Text(_protocol(rows)))
    forest = _forest(scored, [(run, record) for run, record in rows if record["split"] == shown], shown)
    if forest:
        blocks.append(forest)
    tables = [
        Section(f"{label_words(label)}, {shown}", list(_label(runs, rows, label, shown)))
        for label in labels_of(record for _, record in rows)
    ]
    for split in others:
        labels = labels_of(record for _, record in rows if record["split"] == split)
        content = [block for label in labels for block in _label(runs, rows, label, split)]
        words = "chose the strength of the probe, so it flatters" if split == "val" else "as above"
        tables.append(Section(f"Split {split}", [Fold(f"Scores on {split}, which {words}", content)]))
    return Section("Scores", blocks, tables)


def _no_scores(run: Run) -> Text:
    return Text(
        f"{run.name} has not been scored: `medmoco evaluate --encoder {run.name} --out {run.name}/evaluation`.",
        "missing",
    )


def _leaks(rows: Rows) -> list[str]:
    lines: dict[str, None] = {}
    for run, record in rows:
        leakage = record.get("leakage")
        if isinstance(leakage, dict) and all(value is None or isinstance(value, dict) for value in leakage.values()):
            lines |= {f"{run.name}: {line}.": None for line in leak_lines({record["split"]: leakage})}
    return list(lines)


def _protocol(rows: Rows) -> str:
    first = rows[0][1]
    fraction, draws = first.get("label_fraction") or 1.0, first.get("draws", 1)
    words = [
        f"Rows scored: {where_words(first.get('where'))}.",
        f"Labels of {100 * fraction:g} % of the training patients"
        + (f", mean of {several(draws, 'draw')}." if fraction < 1 else "."),
        f"Intervals are 95 %, from {count(first.get('bootstrap'))} draws of patients with replacement.",
    ]
    return " ".join(words)


def _forest(runs: Sequence[Run], rows: Rows, split: str) -> Plot | None:
    drawn, method = [], method_of([record for _, record in rows])
    colours: dict[str, int] = {}
    for label in labels_of(record for _, record in rows):
        for run, record in rows:
            if (record["label"], record["method"]) == (label, method):
                name = encoder_name(run, record["encoder"], runs)
                colour = colours.setdefault(name, len(colours))
                values = dict(zip(("value", "low", "high"), (record[key] for key in _AUROC), strict=True))
                drawn.append({"group": label_words(label), "name": name, "colour": colour, **values})
    return forest_plot(drawn, f"AUROC by {method_words(method)} on {split}, with 95 % intervals", "AUROC")


def forest_plot(drawn: Sequence[Record], caption: str, x: str) -> Plot | None:
    """Return estimates below each other, or none where none is defined."""
    if all(row["value"] is None for row in drawn):
        return None
    said = [
        f"{row['group']}, {row['name']}: {with_interval(row, 'value', 'low', 'high')}"
        for row in drawn
        if row["value"] is not None
    ]
    shown = said if len(said) <= 6 else [*said[:6], f"and {len(said) - 6} more, in the table"]
    cells = [[row["group"], row["name"], with_interval(row, "value", "low", "high")] for row in drawn]
    table = Table(caption, ["", "", f"{x} (95 % interval)"], cells)
    return Plot(forest_figure(drawn, x=x), f"{caption}.", f"{caption}. {'; '.join(shown)}.", table)


def _label(runs: Sequence[Run], rows: Rows, label: str, split: str) -> Iterable[Block]:
    chosen = [(run, record) for run, record in rows if (record["label"], record["split"]) == (label, split)]
    if not chosen:
        return
    first = chosen[0][1]
    has_delong = any(record.get("delong_low") is not None for _, record in chosen)
    against = {
        (run.name, d["method"], d["control"]): d
        for run in runs
        for d in run.evaluation.differences or []
        if (d["label"], d["split"], d["encoder"]) == (label, split, OWN)
    }
    cells = []
    for run, record in chosen:
        difference = against.get((run.name, record["method"], record["encoder"]), {})
        cells.append([
            f"{encoder_name(run, record['encoder'], runs)}, {method_words(record['method'])}",
            record["undefined"] or with_interval(record, *_AUROC),
            *([with_interval({**record, "at": record["auroc"]}, "at", "delong_low", "delong_high")] if has_delong
              else []),
            with_interval(record, "average_precision", "ap_low", "ap_high"),
            with_interval(difference, "difference", "low", "high", sign="+"),
            p_value(difference.get("p_holm", difference.get("p"))),
        ])  # fmt: skip
    counts = f"{count(first['n'])} images of {several(first['n_patients'], 'patient')}, {count(first['n_positive'])}"
    head = ["features", "AUROC", *(["AUROC, DeLong"] if has_delong else []), "average precision",
            "run minus this", "p (Holm)"]  # fmt: skip
    yield Table(f"{label_words(label)} on {split}: {counts} positive", head, cells)
    for run, record in chosen:
        name = f"{encoder_name(run, record['encoder'], runs)}, {method_words(record['method'])}"
        if record.get("flag"):
            yield Text(f"{name}: {record['flag']}; it may have learned nothing.", "warning")
        if record.get("note"):
            yield Text(f"{name}: {record['note']}.")


# ---- operating points ----


def operating_section(runs: Sequence[Run]) -> Section:
    """Show sensitivity and its like at the thresholds that validation gave."""
    sections = by_label(runs, "operating", operating_blocks)
    missing = _missing(runs, "operating", "operating points")
    return Section("Operating points", [*missing, Text(
        "Thresholds reach the wanted specificity on the validation split; what they reach here is shown.",
    )] if sections else missing, sections)  # fmt: skip


def operating_blocks(runs: Sequence[Run], rows: Rows) -> Iterable[Block]:
    """Return the table of one label's operating points."""
    cells = [
        [
            encoder_name(run, record["encoder"], runs),
            number(record["specificity_wanted"], 2),
            *(with_interval(record, key, f"{key}_low", f"{key}_high", 2) for key in _NUMBERS),
            unbroken(" / ".join(count(record[key]) for key in ("tp", "fp", "tn", "fn"))),
        ]
        for run, record in rows
    ]
    head = ["features", "specificity wanted", *_NUMBERS.values(), "TP / FP / TN / FN"]
    yield Table("Shares with 95 % intervals, and counts of images", head, cells)


def by_label(runs: Sequence[Run], file: str, blocks: Show, scores: str = "evaluation") -> list[Section]:
    """Return a section for each label of a file's records of the split and the method that are shown.

    Args:
        runs: To show.
        file: Name of the file without its ending, as `Scores` has it.
        blocks: Shows the records of one label.
        scores: "evaluation", or "external_scores" for the external test.
    """
    chosen = []
    for run in runs:
        found: Scores = getattr(run, scores)
        records = getattr(found, file) or []
        split = "external" if scores == "external_scores" else found.split
        method = method_of([record for record in records if record["split"] == split])
        chosen += [(run, r) for r in records if (r["split"], r["method"]) == (split, method)]
    return [
        Section(label_words(label), list(blocks(runs, [(run, r) for run, r in chosen if r["label"] == label])))
        for label in labels_of(record for _, record in chosen)
    ]


def _missing(runs: Sequence[Run], file: str, what: str) -> list[Block]:
    return [
        Text(f"{run.name} has no {what}: `medmoco evaluate` writes {file}.json into its folder evaluation.", "missing")
        for run in runs
        if getattr(run.evaluation, file) is None
    ]


# ---- subgroups ----


def subgroups_section(runs: Sequence[Run]) -> Section:
    """Show how well each group of patients is served."""
    missing = [
        Text(
            f"{run.name} was not scored in subgroups: `medmoco evaluate ... evaluate.subgroups=[Sex,Age]` does so.",
            "missing",
        )
        for run in runs
        if not run.evaluation.subgroups
    ]
    return Section("Subgroups", missing, by_label(runs, "subgroups", subgroup_blocks))


def subgroup_blocks(runs: Sequence[Run], rows: Rows) -> Iterable[Block]:
    """Return the plot and the table of one label's subgroups."""
    own = [(run, record) for run, record in rows if record["encoder"] == OWN] or list(rows)
    drawn = []
    for column in dict.fromkeys(record["column"] for _, record in own):
        for at, run in enumerate(runs):
            for each, record in own:
                if each is run and record["column"] == column:
                    name = str(record["group"]) if len(runs) == 1 else f"{record['group']}, {run.name}"
                    values = dict(zip(("value", "low", "high"), (record[key] for key in _AUROC), strict=True))
                    drawn.append({"group": column, "name": name, "colour": at, **values})
    plot = forest_plot([row for row in drawn if row["value"] is not None], "AUROC in subgroups", "AUROC")
    if plot:
        yield plot
    cells = []
    for run, record in own:
        is_hidden = str(record["undefined"] or "").startswith("hidden")
        counts = [NOTHING if is_hidden else count(record[key]) for key in ("n", "n_positive", "n_patients")]
        name = encoder_name(run, record["encoder"], runs)
        score = record["undefined"] or with_interval(record, *_AUROC)
        cells.append([record["column"], record["group"], name, *counts, score])
    head = ["column", "group", "features", "images", "positive", "patients", "AUROC (95 % interval)"]
    yield Table("AUROC in subgroups", head, cells)


# ---- ledger ----


def ledger_section(runs: Sequence[Run]) -> Section:
    """Say how often the test split was looked at."""
    blocks: list[Block] = []
    for run in runs:
        if run.ledger is None:
            words = "`medmoco evaluate` adds a line to ledger.jsonl each time it scores a test split."
            blocks.append(Text(f"{run.name} has no ledger: {words}", "missing"))
            continue
        times = "once" if len(run.ledger) == 1 else f"{len(run.ledger):,} times"
        words = "Each look makes the test scores a little less honest, if choices follow from it."
        blocks.append(Text(f"{run.name}: the test split was scored {times}. {words}"))
        blocks.append(Table(f"Looks at the test split, {run.name}", ["time (UTC)", "command", "rows", "AUROC"], [
            _look(entry) for entry in run.ledger
        ]))  # fmt: skip
    return Section("Looks at the test split", blocks)


def _look(entry: Record) -> list[str]:
    words = [word for word in str(entry.get("command", NOTHING)).split() if word.isalpha() and word != "medmoco"]
    aurocs = entry.get("auroc")
    scores = aurocs.items() if isinstance(aurocs, dict) else ()
    return [
        str(entry.get("time", NOTHING))[:19].replace("T", " "),
        words[0] if words else NOTHING,
        f"{count(entry.get('rows'))} ({where_words(entry.get('where'))})",
        "; ".join(f"{label} {number(value)}" for label, value in scores) or NOTHING,
    ]
