"""Sections of a report about the data, the training and the settings of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import BEST, Tree
from medmoco.data.manifest.manifest import Split
from medmoco.plotting.figures import Line, line_figure
from medmoco.reporting.blocks import (
    NOTHING,
    Block,
    Fold,
    Group,
    Listing,
    Plot,
    Section,
    Table,
    Text,
    by_run,
    count,
    number,
    plots_first,
    several,
)  # fmt: skip
from medmoco.reporting.runs import Run
from medmoco.reporting.trained.results import DETECTION, SEGMENTATION
from medmoco.training.runlog import KNN

_LEAST = 20  # patients in a group, or its count is hidden; Source: evaluate.least_patients
_DESCRIBED = ("Sex", "ViewPosition", "Laterality")
_KINDS = {"encoder": "pretraining without labels", "classifier": "fine-tuning with labels"}
_POINTS = 12  # of a curve in its table
_MOST_LINES = 4  # whose course a caption gives one by one


def methods_section(runs: Sequence[Run]) -> Section:
    """Show how the runs were made: the main facts, all settings, and the versions of libraries."""
    return Section("Methods", [overview(runs), *_settings(runs), _versions(runs)])


def overview(runs: Sequence[Run]) -> Table:
    """Return the main facts about each run, one column per run."""
    facts: dict[str, Callable[[Run], str]] = {
        "Kind": lambda run: _KINDS.get(run.kind, f"training of a {run.kind}"),
        "Network": lambda run: str(run.settings.get("model.backbone", NOTHING)),
        "State": _progress,
        "Training images": _training_images,
        "Method": lambda run: NOTHING if run.trained else str(run.settings.get("method.name", NOTHING)),
        "Epochs": lambda run: str(run.settings.get("train.epochs", NOTHING)),
        "Batch": lambda run: str(run.settings.get("train.global_batch_size", NOTHING)),
        "Seed": lambda run: str(run.settings.get("seed", NOTHING)),
        "Device": lambda run: ", ".join(str(run.environment.get(key, NOTHING)) for key in ("device", "precision")),
        "Test split scored": lambda run: several(len(run.ledger), "time") if run.ledger is not None else "no ledger",
    }
    rows = [[name, *(fact(run) for run in runs)] for name, fact in facts.items()]
    return Table("How the encoders were made", ["", *(run.name for run in runs)], rows)


def _training_images(run: Run) -> str:
    if run.trained:  # only some rows are annotated
        return NOTHING
    return count(len(run.splits["train"])) if run.splits else "unknown"


def _progress(run: Run) -> str:
    steps = "" if run.step is None or run.steps is None else f", {run.step:,} of {run.steps:,} steps"
    return f"{run.state}{steps}"


# ---- data ----


def data_section(runs: Sequence[Run]) -> Section:
    """Describe the data of each run."""
    return by_run("Data", {run.name: list(_data(run)) for run in runs})


def _data(run: Run) -> Iterable[Block]:
    if run.splits is None:
        yield Text(
            "Counts are unknown: the manifest of the run is not on this machine, or has changed since training. Write "
            "the report on a machine with the data.",
            "missing",
        )
    else:
        labelled = [_label_counts(run.splits)] if run.splits["train"].label_names else []
        yield Group([_counts(run.splits), *labelled])
        described = _described(run.splits)
        if described.rows:
            yield described
    yield from _exclusions(run)
    if run.audit is None:
        yield Text("The results of `medmoco check` are not next to the run; it checks the data.", "missing")
        return
    if run.faults:
        rows = [[fault, severity, count(amount)] for (severity, fault), amount in sorted(run.faults.items())]
        yield Table("Findings of medmoco check", ["finding", "severity", "rows"], rows)
    else:
        yield Text("medmoco check found nothing wrong with any row.")
    yield Fold("The full report of medmoco check", [Listing(run.audit)])


def _counts(splits: dict[str, Split]) -> Table:
    rows = []
    for name, split in splits.items():
        patients = count(int(np.unique(split.patients).size)) if "PatientID" in split.table else "unknown"
        rows.append([name, count(len(split)), patients])
    return Table("Images and patients of each split", ["split", "images", "patients"], rows)


def _label_counts(splits: dict[str, Split]) -> Table:
    rows = [
        [label, name, *(count(int((cells == value).sum())) for value in (1, 0, -1)), count(int(np.isnan(cells).sum()))]
        for at, label in enumerate(splits["train"].label_names)
        for name, cells in ((name, split.raw_labels[:, at]) for name, split in splits.items())
    ]
    return Table("Labels in the manifest", ["label", "split", "positive", "negative", "uncertain", "blank"], rows)


def _described(splits: dict[str, Split]) -> Table:
    """Count images by patient characteristics; small groups are hidden, as they may identify patients."""
    rows = []
    for column in (*_DESCRIBED, "Age"):
        for name, split in splits.items():
            if column not in split.table:
                continue
            cells = split.table[column].astype(str).str.strip()
            if column == "Age":
                years = pd.to_numeric(cells.str.extract(r"^0*(\d+(?:\.\d+)?)Y?$")[0])
                low, middle, high = years.quantile([0.25, 0.5, 0.75])
                known = int(years.notna().sum())
                words = f"{middle:.0f} ({low:.0f} to {high:.0f}), median and quartiles" if known >= _LEAST else "hidden"
                rows.append([column, name, f"{words}; {count(len(split) - known)} unknown"])
                continue
            groups = cells.where(cells != "", "unknown").to_numpy()
            rows.append([column, name, "; ".join(_group(split, groups, value) for value in sorted(set(groups)))])
    return Table("Characteristics of the images", ["column", "split", "images"], rows, words=True)


def _group(split: Split, groups: NDArray[Any], value: str) -> str:
    members = groups == value
    is_small = np.unique(split.patients[members]).size < _LEAST
    return f"{value}: {f'of fewer than {_LEAST} patients' if is_small else count(int(members.sum()))}"


def _exclusions(run: Run) -> Iterable[Block]:
    total = sum(run.quarantine.values())
    if not total:
        yield Text("No training image was replaced: quarantine.csv is missing or empty.")
        return
    yield Text(
        f"{several(total, 'training image')} could not be used and were replaced by others of the split.", "warning"
    )
    rows = [[reason, count(amount)] for reason, amount in run.quarantine.most_common()]
    yield Table("Images replaced in training", ["reason", "images"], rows, words=True)


# ---- curves ----

_KEPT = "The best epoch was kept."
_CONTRAST = "contrast"
_CURVES = (
    (_CONTRAST, "Contrastive loss", "It does not measure the quality of the features."),
    (
        "reconstruction",
        "Reconstruction error",
        "Mean squared error of normalised pixels, weighted as in the loss.",
    ),
    ("embedding_std", "Embedding spread", "1 for embeddings spread over the sphere, near 0 after collapse."),
    ("effective_rank", "Effective rank", "Number of embedding dimensions in use, near 1 after collapse."),
    ("accuracy", "Accuracy", "Fraction of queries that are closer to their positive key than to every negative."),
)


def training_section(runs: Sequence[Run]) -> Section:
    """Plot the metrics of training, each for all runs."""
    pretrained, finetuned, segmented, detecting = (
        [run for run in runs if run.kind == kind] for kind in ("encoder", "classifier", SEGMENTATION, DETECTION)
    )
    knn = _keys(pretrained, KNN)
    if len(knn) == 2 and KNN in knn:  # the mean over one label repeats it
        knn.remove(KNN)
    selections = [found for run in pretrained if (found := _selection(run))]
    loss, *diagnostics = (_plot(pretrained, [key], title, words) for key, title, words in _CURVES)
    plots = [
        loss,
        _plot(
            pretrained,
            knn,
            "kNN AUROC",
            "Nearest neighbours on the features, on the validation set; chance is 0.5.",
            selections,
        ),
        _plot(finetuned, ["loss"], "Classification loss", "On the training split."),
        _plot(finetuned, _keys(finetuned, "val_auroc"), "Validation AUROC", _KEPT),
        _plot(segmented, ["loss"], "Segmentation loss", "Cross-entropy and Dice on crops of the training images."),
        _plot(segmented, _keys(segmented, "val_dice"), "Validation Dice", _KEPT),
        _plot(detecting, ["loss"], "Detection loss", "On the training split."),
        _plot(detecting, _keys(detecting, "val_ap"), "Validation average precision", _KEPT),
    ]
    blocks = plots_first([plot for plot in plots if plot])
    if folded := [plot for plot in diagnostics if plot]:
        blocks.append(Fold("Diagnostics: is the embedding in use, or has it collapsed?", plots_first(folded)))
    empty = [run.name for run in runs if not run.metrics]
    if empty:
        words = "metrics.jsonl is missing or empty; `medmoco pretrain` and `medmoco finetune` write it."
        blocks.append(Text(f"{', '.join(empty)}: {words}", "missing"))
    if pretrained and not knn:
        words = "`medmoco pretrain` does so if train.knn_every is above 0 and data.labels names labels."
        blocks.append(Text(f"No kNN AUROC was measured in training: {words}", "missing"))
    blocks += [found.words() for found in selections]
    return Section("Training", blocks)


def _keys(runs: Sequence[Run], start: str) -> list[str]:
    return sorted({key for run in runs for record in run.metrics for key in record if key.startswith(start)})


@dataclass(frozen=True)
class _Selection:
    """The best and the last kNN score of a run, each with its epoch, if known, and step."""

    run: Run
    best: Tree
    last: Tree
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the best score is the last one."""
        return bool(self.best["step"] == self.last["step"])

    def words(self) -> Text:
        """Return what to know about the choice between the two."""
        run, folder, scores = self.run, f"{self.run.name}/{BEST}", several(self.count, "score")
        text = (
            f"{run.name}: the best kNN AUROC, a mean over the labels, is {_at(self.best)}, with its checkpoint in"
            f" `{folder}`; {'it is also the last' if self.is_last else f'the last is {_at(self.last)}'}."
        )
        if self.count > 1:
            text += f" The best of {scores} is optimistic, because it was chosen on the images that it is measured on."
        if not self.is_last:
            sources = f"--encoder last={run.name} --encoder best={folder}"
            text += f" To compare the two checkpoints, run `medmoco evaluate {sources}`."
        if run.ended_early:
            text += f" Training was stopped early, after {run.step:,} of {run.steps:,} steps."
        if run.scores_best:
            text += " This report shows scores of the best checkpoint; those on validation are optimistic."
        return Text(text)

    def marks(self, *, several_runs: bool) -> list[tuple[str, float, float]]:
        """Return the points to mark in the figure."""
        name = f"{self.run.name}, " if several_runs else ""
        points = {"best and last": self.best} if self.is_last else {"best": self.best, "last": self.last}
        return [(f"{name}{word} {number(at[KNN])}", at["step"], at[KNN]) for word, at in points.items()]


def _selection(run: Run) -> _Selection | None:
    """Return the scores of a run that has kept its best checkpoint."""
    scored = [record for record in run.metrics if _is_number(record.get(KNN))]
    best = [record for record in scored if record["step"] == run.best_step]
    return _Selection(run, best[0], scored[-1], len(scored)) if best else None


def _at(score: Tree) -> str:
    epoch = f"epoch {score['epoch']}, " if isinstance(score.get("epoch"), int) else ""
    return f"{number(score[KNN])} ({epoch}step {score['step']:,})"


def _plot(
    runs: Sequence[Run], keys: Sequence[str], title: str, words: str, selections: Sequence[_Selection] = ()
) -> Plot | None:
    lines, rows, chance = [], [], set()
    for at, run in enumerate(runs):
        for dash, key in enumerate(keys):
            found = [(record["step"], _value(record, key)) for record in run.metrics]
            points = [(step, value) for step, value in found if _is_number(value)]
            if not points:
                continue
            name = run.name if len(keys) == 1 else f"{run.name}, {key.partition('/')[2] or 'mean'}"
            x, y = zip(*points, strict=True)
            # A colour for each run or, if there is only one run, for each label.
            colour, dashes = (at, dash if len(keys) > 1 else at) if len(runs) > 1 else (dash, dash)
            lines.append(Line(name, x, y, colour=colour, dash=dashes, marked=len(points) <= 40))
            rows += [[name, count(step), number(value)] for step, value in _some(points)]
        if keys == [_CONTRAST]:
            chance |= {round(record["chance"], 3) for record in run.metrics if _is_number(record.get("chance"))}
    if not lines:
        return None
    level = chance.pop() if len(chance) == 1 else None  # it differs between queues of different lengths
    named = "" if level is None else f"chance {level:.2f}"
    marks = [mark for found in selections for mark in found.marks(several_runs=len(runs) > 1)]
    figure = line_figure(lines, x="step", y=title, reference=level, named=named, marks=marks)
    last = "; ".join(f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}" for line in lines)
    guess = "" if level is None else f" Chance, ln(1 + negatives), is {level:.2f}."
    alt = f"{title} over training steps: {last}.{guess}"
    table = Table(f"{title} over training steps", ["run", "step", title], rows)
    return Plot(figure, f"{title}. {_courses(lines)}{guess} {words}", alt, table)


def _courses(lines: Sequence[Line]) -> str:
    """Say how the first and the last point of each line compare, in words that are true of this run."""
    if len(lines) > _MOST_LINES:
        return f"{sum(line.y[-1] > line.y[0] for line in lines)} of {len(lines)} lines end higher than they start."
    courses = (f"{line.name if len(lines) > 1 else 'It'} {_course(line)}" for line in lines)
    return f"{'; '.join(courses)}."


def _course(line: Line) -> str:
    first, last = number(line.y[0]), number(line.y[-1])
    if first == last:
        return f"{'is' if len(line.y) == 1 else 'ends where it started, at'} {last}"
    return f"{'rises' if line.y[-1] > line.y[0] else 'falls'} from {first} to {last}"


def _value(record: Mapping[str, Any], key: str) -> Any:
    """Return a metric; without a decoder the contrastive loss is the total loss."""
    if key == _CONTRAST and key not in record and "reconstruction" not in record:
        return record.get("loss")
    return record.get(key)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _some(points: Sequence[Any]) -> list[Any]:
    """Return evenly spaced points, including the first and the last."""
    places = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    return [points[at] for at in places]


# ---- settings and versions ----


def _settings(runs: Sequence[Run]) -> list[Block]:
    """Return the settings without paths; those in which the runs differ come first."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    cells = {key: [_setting(run.settings.get(key, NOTHING)) for run in runs] for key in keys}
    differing = [[key, *values] for key, values in cells.items() if len(set(values)) > 1]
    head = ["setting", *(run.name for run in runs)]
    everything = Fold("All settings", [Table("Settings", head, [[key, *values] for key, values in cells.items()])])
    if len(runs) == 1:
        return [everything]
    first: Block = (
        Table("Settings in which the runs differ", head, differing)
        if differing
        else Text("The runs have the same settings.")
    )
    return [first, everything]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "none"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _versions(runs: Sequence[Run]) -> Fold:
    """Return the libraries and the machine of each run."""
    libraries = [run.environment.get("libraries") for run in runs]
    known = [found if isinstance(found, dict) else {} for found in libraries]
    rows = [
        [key, *(str(run.environment.get(key, NOTHING)) for run in runs)]
        for key in ("python", "device", "cpu", "precision", "threads", "processes", "manifest_sha256")
    ]
    for name in dict.fromkeys(name for found in known for name in found):
        rows.append([name, *(str(found.get(name, NOTHING)) for found in known)])
    table = Table("Versions and machine", ["", *(run.name for run in runs)], rows, words=True)
    return Fold("Versions and machine", [table])
