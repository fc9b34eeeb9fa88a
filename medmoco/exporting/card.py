"""The model card: intended use, origin, scores and limits of the exported network.

Every value in it is picked by name. Nothing is copied wholesale, so no path, host, user or id can slip in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from medmoco.config import RunSettings, Tree, as_tree, flatten, to_yaml
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.row_filter import where_words
from medmoco.errors import CheckpointError
from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.record_files import read_records
from medmoco.evaluation.records import Score
from medmoco.evaluation.scoring.table import span
from medmoco.exporting.subject import Subject

# Settings that affect the encoder; other data.* settings and out contain paths, and evaluate.* has no effect on it.
_SETTINGS = (
    "seed", "data.canvas_size", "data.channels", "data.scale", "data.band_ranges", "data.bit_depth", "data.window",
    "views.", "model.backbone", "model.fixed_patches",
    "method.", "positives.", "train.epochs",
    "train.global_batch_size", "train.optimizer", "train.lr", "train.sgd_momentum", "train.weight_decay",
    "train.schedule", "train.warmup_epochs", "train.milestones", "train.clip_norm", "train.precision", "train.patience",
)  # fmt: skip


_SETTINGS_OF_VOLUMES = ("data.dimensions", "data.spacing")


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run.

    Attributes:
        settings: Settings of the run.
        step: Step of the exported checkpoint.
        selected_by: How it was chosen; None for the newest one.
        status: status.json, or empty.
        environment: environment.json, or empty.
        speed: Records of metrics.jsonl with "step" and "images_per_second".
        scores: evaluation/scores.json, or None if there is none, or it is of another checkpoint.
        train: Training split, or None if the manifest cannot be read or has changed.
    """

    settings: RunSettings
    step: int
    selected_by: str | None
    status: Tree
    environment: Tree
    speed: list[Tree]
    scores: Sequence[Score] | None
    train: Split | None


def gather(
    run: Path, settings: RunSettings, step: int, train: Split | None, selected_by: str | None = None
) -> RunFacts:
    """Read the facts from the run folder.

    Raises:
        CheckpointError: a JSON file is damaged.
    """
    environment, scores = _read_json(run / "environment.json"), run / "evaluation" / "scores.json"
    scored = _read_json(run / "evaluation" / "classifier" / "classifier.json").get("encoder", {})
    # Without the step of the encoder that was scored, it was probably the newest one.
    is_scored = scores.is_file() and scored.get("step", None if selected_by else step) == step
    is_same = train is not None and environment.get("manifest_sha256") == train.sha256
    return RunFacts(
        settings=settings,
        step=step,
        selected_by=selected_by,
        status=_read_json(run / "status.json"),
        environment=environment,
        speed=_read_speed(run / "metrics.jsonl", step),
        scores=read_records(scores, Score) if is_scored else None,
        train=train if is_same else None,
    )


def _read_json(file: Path) -> Tree:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, TypeError):
        raise CheckpointError(f"{file.name} of the run is damaged; delete it or write it again, then export") from None


def _read_speed(metrics: Path, last: int) -> list[Tree]:
    """Return the records with a speed up to a step; the last line may have been cut short."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = (json.loads(line) for line in lines if '"images_per_second"' in line and line.endswith("}"))
    return [record for record in records if record["step"] <= last]


def write_card(run: RunFacts, contract: Tree, parity: Tree) -> str:
    """Return the model card of a run's encoder as Markdown, from the contents of preprocessing.json and parity.json."""
    train, tests = run.train, [score for score in run.scores or () if score.split == "test"]
    labels = zip(train.label_names, train.raw_labels.T, strict=True) if train else ()
    shown: tuple[str, ...] = _SETTINGS
    if run.settings.data.dimensions == 3:
        shown = (*_SETTINGS_OF_VOLUMES, *(key for key in _SETTINGS if key != "data.canvas_size"))
    chosen = {key: value for key, value in flatten(as_tree(run.settings)) if key.startswith(shown)}
    return _render(
        contract,
        parity,
        what="encoder",
        backbone=run.settings.model.backbone,
        origin=f"from step {run.step} of a self-supervised run that used no labels{_selection(run)}."
        f" The run {_progress(run.status)}",
        run=run,
        patients=np.unique(train.patients).size if train and "PatientID" in train.table else "an unknown number of",
        labels=[
            [name, *((cells == value).sum() for value in (1, 0, -1)), np.isnan(cells).sum()] for name, cells in labels
        ],
        settings=to_yaml(chosen),
        compute=_compute(run),
        leaks=leak_lines({"test": tests[0].leakage}) if tests else [],
        scores=[_score_cells(score) for score in tests],
    )


def _selection(run: RunFacts) -> str:
    """Return what labels were used for, besides training."""
    uses = [f"to choose this step by its {run.selected_by}"] if run.selected_by else []
    uses += ["to stop the run early"] if _ended_early(run.status) else []
    return f" except {' and '.join(uses)}" if uses else ""


def _ended_early(status: Tree) -> bool:
    """Return whether a run ended before its last step because its kNN score no longer improved."""
    step, steps = status.get("step"), status.get("steps")
    return status.get("state") == "done" and isinstance(step, int) and isinstance(steps, int) and step < steps


def write_plain_card(subject: Subject, contract: Tree, parity: Tree) -> str:
    """Return the model card of any network but the encoder of a run, as Markdown; see `write_card`."""
    facts, kind = subject.classifier, subject.encoder.provenance.kind
    if subject.segmenter:
        return _render(
            contract, parity, what="segmentation network", backbone=subject.backbone.name, segmenter=subject.segmenter,
            start=_start(subject.segmenter["encoder"]),
        )  # fmt: skip
    sources = {"export": "from an export", "import": "from weights imported from another project"}
    return _render(
        contract,
        parity,
        what=subject.stem,
        backbone=subject.backbone.name,
        origin=f"trained as: {facts['trained']}" if facts else sources.get(kind, "from a weights file of the user"),
        classifier=facts,
        labels=[_label_cells(label, facts) for label in facts["labels"]] if facts else [],
        start=_start(facts["encoder"]) if facts else "",
    )


def _render(contract: Tree, parity: Tree, **values: Any) -> str:
    loader = PackageLoader("medmoco.exporting")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701
    environment.filters["row"] = _row
    files = [[name, f"{file['bytes']:,}", file["sha256"]] for name, file in contract["files"].items()]
    proofs = [
        [proof["format"], proof["path"], f"{proof['max_relative_difference']:.1e}", f"{proof['tolerance']:g}"]
        for proof in parity["formats"]
    ]
    card = environment.get_template("model_card.md.j2")
    return card.render(contract=contract, files=files, proofs=proofs, **values)


def _label_cells(label: str, classifier: Tree) -> list[str]:
    policy = classifier["label_policies"].get(label, {}).get("uncertain", "not recorded")
    points = [f"{at['specificity']:g}: {at['threshold']:.3f}" for at in classifier["operating_points"][label]]
    calibration = classifier["calibration"][label]["kind"]
    return [label, policy, _number(classifier["val_auroc"][label]), calibration, "; ".join(points) or "none"]


def _start(encoder: Tree) -> str:
    kinds = {
        "run": "a momentum-contrast run",
        "random": "random weights",
        "file": "a weights file",
        "export": "an export",
        "import": "weights from another project",
    }
    step = f", step {encoder['step']}" if isinstance(encoder.get("step"), int) else ""
    return f"{kinds.get(str(encoder.get('kind')), 'an unknown source')}{step}"


def _progress(status: Tree) -> str:
    words = {
        "done": "was completed",
        "running": "had not finished at export",
        "stopped": "was stopped early",
        "failed": "failed early",
    }
    known, steps = words.get(str(status.get("state")), "has no record of how it ended"), status.get("steps")
    if _ended_early(status):
        known = f"ended at step {status['step']}, since its kNN score on val did not improve"
    return f"{known}; {steps} steps were planned" if isinstance(steps, int) else known


def _compute(run: RunFacts) -> list[str]:
    known = {key: run.environment.get(key) for key in ("device", "precision", "threads", "python")}
    lines = [f"{key}: {value}" for key, value in known.items() if isinstance(value, str | int)]
    batch, seconds, before = run.settings.train.global_batch_size, 0.0, 0
    for record in run.speed:
        seconds += (record["step"] - before) * batch / record["images_per_second"]
        before = record["step"]
    if seconds:
        took, rate = timedelta(seconds=round(seconds)), before * batch / seconds
        shown = "volumes" if run.settings.data.dimensions == 3 else "images"
        lines.append(f"{before} training steps took {took} at {rate:.0f} {shown} per second")
    return lines


def _score_cells(score: Score) -> list[Any]:
    fraction = score.label_fraction or 1.0
    rows = where_words(score.where)
    if fraction < 1:
        rows += f"; labels of {100 * fraction:g} % of training patients"
    auroc = _number(score.auroc) + (" (predicts the majority)" if score.flag else "")
    known = [score.method, score.encoder, score.n, score.n_positive, score.n_patients]
    interval = "none" if score.auroc_low is None else span(score.auroc_low, score.auroc_high)
    return [score.label, rows, *known, auroc, interval, _number(score.average_precision)]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float | int) else "undefined"


def _row(cells: Sequence[Any]) -> str:
    """Write a table row; text from the user cannot leave its cell."""
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
