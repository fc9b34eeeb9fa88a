"""Sections of a report with scores: AUROC, operating points and subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any, Generic, NamedTuple, TypeVar

from medmoco.data.manifest.row_filter import where_words
from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.records import (
    UNNAMED,
    Compared,
    Counts,
    EncoderRecord,
    MethodRecord,
    OperatingPoint,
    PrimaryRecord,
    Score,
    Subgroup,
)
from medmoco.evaluation.scoring.table import MACRO, family, sized_names
from medmoco.evaluation.target_records import ClassScore, RegressionDifference, RegressionScore
from medmoco.evaluation.verdict import is_clear
from medmoco.plotting.figures import Estimate, forest_figure, method_words
from medmoco.reporting.blocks import (
    NOTHING,
    Block,
    Fold,
    Group,
    Plot,
    Section,
    Table,
    Text,
    count,
    number,
    p_value,
    several,
    unbroken,
    with_interval,
)  # fmt: skip
from medmoco.reporting.runs import Run, Scores, missing

_SIGNIFICANT = 0.05
_NUMBERS = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}

Kind = TypeVar("Kind", bound=MethodRecord)
AnyCompared = TypeVar("AnyCompared", bound=Compared | RegressionDifference)


class Row(NamedTuple, Generic[Kind]):
    """A record of a run, and whether it is about the primary encoder."""

    run: Run
    record: Kind
    is_primary: bool

    def name(self, runs: Sequence[Run]) -> str:
        """Return the name of the encoder."""
        return encoder_name(self.run, self.record.encoder, runs, is_primary=self.is_primary)


Rows = Sequence[Row[Kind]]


def rows_of(run: Run, records: Iterable[Kind], primary: str | None) -> list[Row[Kind]]:
    """Return the records of a run as rows."""
    return [Row(run, record, record.encoder == primary) for record in records]


def encoder_name(
    run: Run,
    encoder: str,
    runs: Sequence[Run],
    *,
    is_primary: bool = False,
    records: Sequence[PrimaryRecord] | None = None,
) -> str:
    """Return the name to show for an encoder: the user's, or the name of the run if there is none.

    The size of its images is added if `records`, by default the scores of the run, say that it had its own.
    """
    if is_primary and encoder == UNNAMED:
        return run.name
    sized = sized_names(records or run.evaluation.scores or run.evaluation.regression or ())
    name = sized.get(encoder, PurePath(encoder).name)
    return name if len(runs) == 1 else f"{name} ({run.name})"


def preprocessing_texts(run: Run, records: Iterable[PrimaryRecord]) -> list[Text]:
    """Return a line for each encoder whose images were not prepared as those of the primary one."""
    own = {record.encoder: record.preprocessing for record in records if record.preprocessing}
    return [Text(f"{name} ({run.name}): images of {words}.", "note") for name, words in own.items()]


def method_of(methods: Sequence[str]) -> str:
    """Return the method to plot: the linear probe, or else the first one."""
    return "linear" if "linear" in methods or not methods else methods[0]


def labels_of(records: Iterable[EncoderRecord]) -> list[str]:
    """Return the labels in order; the mean over labels comes last, and only if there are several."""
    labels = list(dict.fromkeys(record.label for record in records))
    named = [label for label in labels if label != MACRO]
    return [*named, MACRO] if MACRO in labels and len(named) > 1 else named


def label_words(label: str) -> str:
    """Return the name to show for a label."""
    return "Mean over labels" if label == MACRO else label


# ---- scores ----


def scores_section(runs: Sequence[Run]) -> Section:
    """Show every score with its interval, next to the controls."""
    words = "{run} has not been evaluated: `medmoco evaluate --encoder {run} --out {run}/evaluation`."
    blocks = missing(runs, lambda run: not run.evaluation.scores and not run.evaluation.regression, words)
    rows = [row for run in runs for row in rows_of(run, run.evaluation.scores or (), run.evaluation.primary)]
    leaks = [
        f"{run.name}: {line}."
        for run in runs
        for scored in (run.evaluation.scores, run.evaluation.regression)
        for record in scored or ()
        for line in leak_lines({record.split: record.leakage})
    ]
    blocks += [Text(line, "warning") for line in dict.fromkeys(leaks)]
    if not rows:
        return Section("Scores", blocks)
    splits = sorted({row.record.split for row in rows}, key=lambda split: (split != "test", split))
    shown, *others = splits
    blocks.append(Text(_protocol(rows[0].record)))
    blocks += [text for run in runs for text in preprocessing_texts(run, run.evaluation.scores or ())]
    scored = [run for run in runs if run.evaluation.scores]
    forest = _forest(scored, [row for row in rows if row.record.split == shown], shown)
    if forest:
        blocks = [Group([forest, Group(blocks, stacked=True)])]
    tables = [
        Section(f"{label_words(label)}, {shown}", list(_label(runs, rows, label, shown)))
        for label in labels_of(row.record for row in rows)
    ]
    for split in others:
        labels = labels_of(row.record for row in rows if row.record.split == split)
        content = [block for label in labels for block in _label(runs, rows, label, split)]
        words = ", optimistic because validation chose the regularisation of the probe" if split == "val" else ""
        tables.append(Section(f"Split {split}", [Fold(f"Scores on {split}{words}", content)]))
    return Section("Scores", blocks, tables)


def _protocol(first: Score) -> str:
    fraction = first.label_fraction or 1.0
    draws = f", mean of {several(first.draws or 1, 'draw')}" if fraction < 1 else ""
    return (
        f"Rows scored: {where_words(first.where)}. Labels of {100 * fraction:g} % of the training patients{draws}. "
        f"Intervals are 95 %, from {count(first.bootstrap)} bootstrap draws of patients; p (Holm) is corrected for all"
        " comparisons of the same split and method."
    )


def _forest(runs: Sequence[Run], rows: Rows[Score], split: str) -> Plot | None:
    drawn, method = [], method_of([row.record.method for row in rows])
    colours: dict[str, int] = {}
    for label in labels_of(row.record for row in rows):
        for row in rows:
            score = row.record
            if (score.label, score.method) == (label, method):
                name = row.name(runs)
                colour = colours.setdefault(name, len(colours))
                values = (score.auroc, score.auroc_low, score.auroc_high)
                drawn.append(Estimate(label_words(label), name, *values, colour))
    return forest_plot(drawn, f"AUROC by {method_words(method)} on {split}, with 95 % intervals", "AUROC")


def forest_plot(drawn: Sequence[Estimate], caption: str, x: str) -> Plot | None:
    """Return a forest plot of estimates; None if none is defined."""
    if all(row.value is None for row in drawn):
        return None
    cells = [[row.group, row.name, with_interval(row.value, row.low, row.high)] for row in drawn]
    words = [
        f"{group}, {name}: {text}" for row, (group, name, text) in zip(drawn, cells, strict=True)
        if row.value is not None
    ]  # fmt: skip
    shown = words if len(words) <= 6 else [*words[:6], f"and {len(words) - 6} more, in the table"]
    table = Table(caption, ["", "", f"{x} (95 % interval)"], cells)
    return Plot(forest_figure(drawn, x=x), f"{caption}.", f"{caption}. {'; '.join(shown)}.", table)


def _label(runs: Sequence[Run], rows: Rows[Score], label: str, split: str) -> Iterable[Block]:
    chosen = [row for row in rows if (row.record.label, row.record.split) == (label, split)]
    if not chosen:
        return
    first = chosen[0].record
    has_delong = any(row.record.delong_low is not None for row in chosen)
    against = {
        (run.name, d.method, d.control): d
        for run in runs
        for d in run.evaluation.differences or ()
        if (d.label, d.split, d.encoder) == (label, split, run.evaluation.primary)
    }
    cells = []
    for row in chosen:
        score, difference = row.record, against.get((row.run.name, row.record.method, row.record.encoder))
        gain, p = difference_cells(difference)
        cells.append([
            f"{row.name(runs)}, {method_words(score.method)}", gain,
            score.undefined or with_interval(score.auroc, score.auroc_low, score.auroc_high),
            p,
            with_interval(score.average_precision, score.ap_low, score.ap_high),
            *([with_interval(score.auroc, score.delong_low, score.delong_high)] if has_delong else []),
        ])  # fmt: skip
    head = ["features", "primary minus this", "AUROC", "p (Holm)", "average precision",
            *(["AUROC, DeLong"] if has_delong else [])]  # fmt: skip
    caption = f"{label_words(label)} on {split}: {images_in(first)}, {count(first.n_positive)} positive"
    yield Table(caption, head, cells, decisive=True)
    compared = [found for run in runs for found in run.evaluation.differences or ()]
    yield from multiplicity(list(against.values()), compared)
    for row in chosen:
        name = f"{row.name(runs)}, {method_words(row.record.method)}"
        if row.record.flag:
            yield Text(f"{name}: {row.record.flag}; it may have learned nothing.", "warning")
        if row.record.note:
            yield Text(f"{name}: {row.record.note}.")


def images_in(score: Counts | ClassScore | RegressionScore) -> str:
    """Return "200 images of 100 patients", without the patients if each image has its own, as if they are unknown."""
    images = f"{count(score.n)} images"
    return images if score.n_patients == score.n else f"{images} of {several(score.n_patients, 'patient')}"


def multiplicity(shown: Sequence[AnyCompared], compared: Sequence[AnyCompared]) -> Iterable[Text]:
    """Explain why an interval excludes 0 although the corrected p-value is large, where this is so.

    Args:
        shown: Differences in a table.
        compared: All differences, among them those for which the p-values are corrected.
    """
    sizes = Counter(map(_family, compared))
    apart = [
        found for found in shown
        if is_clear(found) and (found.p_holm or 0) >= _SIGNIFICANT and sizes[_family(found)] > 1
    ]  # fmt: skip
    if not apart:
        return
    amounts = " or ".join(map(str, sorted({sizes[_family(found)] for found in apart})))
    every = "both" if amounts == "2" else f"all {amounts}"
    yield Text(
        f"In {several(len(apart), 'row')}, the interval excludes 0 although p (Holm) is {_SIGNIFICANT} or more. The"
        f" interval stands for one comparison alone; p is corrected for {every} comparisons of the same split,"
        " method and fraction of labels, of which one may differ as much by chance.",
        "note",
    )


def _family(found: Compared | RegressionDifference) -> tuple[Any, ...]:
    return (*family(found), getattr(found, "fraction", None))  # a curve adjusts them for each fraction of the labels


def difference_cells(found: Compared | None) -> list[str]:
    """Return a difference with its interval, and its p value."""
    if found is None:
        return [NOTHING, NOTHING]
    p = found.p if found.p_holm is None else found.p_holm
    return [with_interval(found.difference, found.low, found.high, sign="+"), p_value(p)]


# ---- operating points ----


def operating_section(runs: Sequence[Run]) -> Section:
    """Show sensitivity, specificity and predictive values at the thresholds chosen on validation."""
    sections = by_label(runs, lambda scores: scores.operating, operating_blocks)
    words = "{run} has no operating points: `medmoco evaluate` writes operating.json into its folder evaluation."
    blocks = missing(runs, lambda run: run.evaluation.operating is None, words)
    if sections:
        blocks.append(Text("Thresholds were chosen on validation for a requested specificity, which may differ here."))
    return Section("Operating points", blocks, sections)


def operating_blocks(runs: Sequence[Run], rows: Rows[OperatingPoint]) -> Iterable[Block]:
    """Return the table of one label's operating points; those of the controls are folded."""
    own, controls = ([row for row in rows if row.is_primary is kind] for kind in (True, False))
    if own:
        yield _operating_table(runs, own)
    if controls:
        yield Fold("Operating points of the controls", [_operating_table(runs, controls)])


def _operating_table(runs: Sequence[Run], rows: Rows[OperatingPoint]) -> Table:
    cells = [
        [
            f"{row.name(runs)}, {number(row.record.specificity_wanted, 2)}",
            *(
                with_interval(*(getattr(row.record, f"{key}{end}") for end in ("", "_low", "_high")), digits=2)
                for key in _NUMBERS
            ),
            unbroken(" / ".join(count(getattr(row.record, key)) for key in ("tp", "fp", "tn", "fn"))),
        ]
        for row in rows
    ]
    head = ["features, requested", *_NUMBERS.values(), "TP / FP / TN / FN"]
    return Table("Proportions with 95 % intervals, and numbers of images", head, cells, decisive=True)


def by_label(
    runs: Sequence[Run],
    pick: Callable[[Scores], Sequence[Kind] | None],
    blocks: Callable[[Sequence[Run], Rows[Kind]], Iterable[Block]],
    *,
    is_external: bool = False,
) -> list[Section]:
    """Return a section for each label, with the records of the split and the method shown.

    Args:
        runs: Runs to show.
        pick: Returns the records of an evaluation folder.
        blocks: Shows the records of one label.
        is_external: Whether to show the records of the external validation.
    """
    chosen: list[Row[Kind]] = []
    for run in runs:
        scores = run.external_scores if is_external else run.evaluation
        split = "external" if is_external else scores.split
        rows = rows_of(run, pick(scores) or (), scores.primary)
        method = method_of([row.record.method for row in rows if row.record.split == split])
        chosen += [row for row in rows if (row.record.split, row.record.method) == (split, method)]
    return [
        Section(label_words(label), list(blocks(runs, [row for row in chosen if row.record.label == label])))
        for label in labels_of(row.record for row in chosen)
    ]


# ---- subgroups ----


def subgroups_section(runs: Sequence[Run]) -> Section:
    """Show the scores within groups of patients."""
    words = "{run} was not evaluated in subgroups: `medmoco evaluate ... evaluate.subgroups=[Sex,Age]` does so."
    blocks = missing(runs, lambda run: not run.evaluation.subgroups, words)
    return Section("Subgroups", blocks, by_label(runs, lambda scores: scores.subgroups, subgroup_blocks))


def subgroup_blocks(runs: Sequence[Run], rows: Rows[Subgroup]) -> Iterable[Block]:
    """Return the plot and the table of one label's subgroups."""
    own, drawn = [row for row in rows if row.is_primary], []
    for column in dict.fromkeys(row.record.column for row in own):
        for at, run in enumerate(runs):
            for row in own:
                found = row.record
                if row.run is run and found.column == column and found.auroc is not None:
                    name = found.group if len(runs) == 1 else f"{found.group}, {run.name}"
                    drawn.append(Estimate(column, name, found.auroc, found.auroc_low, found.auroc_high, at))
    plot = forest_plot(drawn, "AUROC in subgroups", "AUROC")
    cells = []
    for row in own:
        found = row.record
        is_hidden = (found.undefined or "").startswith("hidden")
        counts = [NOTHING if is_hidden else count(amount) for amount in (found.n, found.n_positive, found.n_patients)]
        score = found.undefined or with_interval(found.auroc, found.auroc_low, found.auroc_high)
        cells.append([f"{found.column}: {found.group}", score, row.name(runs), *counts])
    head = ["group", "AUROC (95 % interval)", "features", "images", "positive", "patients"]
    table = Table("AUROC in subgroups", head, cells, decisive=True)
    yield Group([plot, table]) if plot else table
