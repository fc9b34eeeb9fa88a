"""The model card: what the encoder is for, where it comes from, what it scored, where it ends.

Every value in it is picked by name. Nothing is copied wholesale, so no path, host, user or id can slip in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from medmoco.config import RunSettings, as_tree, flatten, to_yaml
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError
from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.record_files import read_records
from medmoco.evaluation.records import Score
from medmoco.evaluation.scoring.table import span
from medmoco.exporting.subject import Subject

Record = dict[str, Any]

# Settings that change the encoder; data.* beyond these and out name folders, evaluate.* leaves the encoder as it is.
_SETTINGS = (
    "seed", "data.canvas_size", "data.channels", "data.scale", "data.band_ranges", "data.bit_depth", "data.window",
    "views.", "model.backbone", "model.fixed_patches",
    "method.", "positives.", "train.epochs",
    "train.global_batch_size", "train.optimizer", "train.lr", "train.sgd_momentum", "train.weight_decay",
    "train.schedule", "train.warmup_epochs", "train.milestones", "train.clip_norm", "train.precision",
)  # fmt: skip
_ID_COLUMNS = ("Path", "PatientID", "StudyID")

_USE = """\
## Intended use

- Research on medical images like the training images: {uses}
- Whoever builds on it validates the result on data of the place where it will be used

## Out of scope

- Diagnosis, triage or any decision about a patient from this {what} alone{meaning}
- Other modalities, body parts, age groups, or photographs, unless validated there first
- Recognising persons, or inferring what the images were not taken for"""

_USES = {
    "encoder": {
        "uses": "probes on frozen features, fine-tuning, retrieval",
        "meaning": ": none of its outputs means a finding",
    },
    "classifier": {"uses": "comparison with other classifiers, reader studies, fine-tuning", "meaning": ""},
}

_END = """\
## Limits

- Features also hold what nobody asked for: projection, device, site, age, sex. A classifier can lean on them.
- The whole image is seen at the input size, whatever its aspect ratio; findings of a few pixels are lost.
- Fed otherwise than preprocessing.json says, the {what} gives plausible, wrong outputs.
- No scores by sex, age, device or site are in this card.

## Privacy

- The files hold weights and settings: no image, no patient or study id, no path, host or user name. `medmoco export`
  searched every byte for those of this machine and of the manifest, where it could read one.
- Weights can still reveal something of the training images; publish them only as the owner of the data allows.

## Left to the author

- Licence: {licence}
- Contact: not stated
- Origin, licence and ethics approval of the training data: not stated
"""


@dataclass(frozen=True)
class RunFacts:
    """What is known about a run.

    Attributes:
        settings: It was made with.
        step: Of the exported checkpoint.
        status: status.json, or empty.
        environment: environment.json, or empty.
        speed: Records of metrics.jsonl that hold "step" and "images_per_second".
        scores: Of evaluation/scores.json, or None where there is none.
        train: The training split, or None where the manifest cannot be read or has changed since.
    """

    settings: RunSettings
    step: int
    status: Record
    environment: Record
    speed: list[Record]
    scores: Sequence[Score] | None
    train: Split | None


def gather(run: Path, settings: RunSettings, step: int, train: Split | None) -> RunFacts:
    """Read what the run folder says about the run.

    Raises:
        CheckpointError: one of its JSON files is damaged.
    """
    environment, scores = _read_json(run / "environment.json") or {}, run / "evaluation" / "scores.json"
    is_same = train is not None and environment.get("manifest_sha256") == train.sha256
    return RunFacts(
        settings=settings,
        step=step,
        status=_read_json(run / "status.json") or {},
        environment=environment,
        speed=[record for record in _read_lines(run / "metrics.jsonl") if record["step"] <= step],
        scores=read_records(scores, Score) if scores.is_file() else None,
        train=train if is_same else None,
    )


def _read_json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{file.name} of the run is damaged; delete it or write it again, then export") from None


def _read_lines(metrics: Path) -> list[Record]:
    """Return the records that hold a speed; the last line may have been cut short."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return [json.loads(line) for line in lines if '"images_per_second"' in line and line.endswith("}")]


def write_card(facts: RunFacts, contract: Record, parity: Record) -> str:
    """Return the model card of a run's encoder as Markdown.

    Args:
        facts: Of the run.
        contract: Content of preprocessing.json.
        parity: Content of parity.json.
    """
    origin = f"from step {facts.step} of a self-supervised run that saw no labels. The run {_progress(facts.status)}"
    sections = {
        "Data": _data(facts),
        "Method": _method(facts.settings),
        "Compute": _compute(facts),
        "Scores": _scores(facts.scores),
        "Files": _files(contract, parity),
    }
    return _card("encoder", facts.settings.model.backbone, origin, sections, contract)


def write_plain_card(subject: Subject, contract: Record, parity: Record) -> str:
    """Return the model card of a network that no run folder is known of, as Markdown.

    Args:
        subject: A classifier, or an encoder from a weights file.
        contract: Content of preprocessing.json.
        parity: Content of parity.json.
    """
    facts = subject.classifier
    sources = {"export": "from an export", "import": "from weights imported from another project"}
    source = sources.get(subject.encoder.provenance.kind, "from a weights file that the user gave")
    origin = f"trained as: {facts['trained']}" if facts else source
    sections = {"Labels": _labels(facts), "Origin": _origin(facts, facts["encoder"])} if facts else {}
    sections["Files"] = _files(contract, parity)
    return _card(subject.stem, subject.backbone.name, origin, sections, contract)


def _card(what: str, backbone: str, origin: str, sections: Mapping[str, list[str]], contract: Record) -> str:
    (_, channels, _, size), outputs = contract["input"]["shape"], contract["outputs"]
    images = "one-channel images" if channels == 1 else f"images of {channels} channels ({contract['steps'][0]})"
    gives = " and ".join(f"{output['shape'][1]} {output['name']}" for output in outputs)
    lines = [
        f"# {backbone}, {'pretrained' if what == 'encoder' else 'a classifier trained'} with medmoco",
        "",
        "**This is not a medical device.**",
        "",
        f"{'An encoder' if what == 'encoder' else 'A classifier'} of {images} of {size} x {size} pixels to "
        f"{gives}, {origin}.",
        "",
        _USE.format(what=what, **_USES[what]),
        "",
    ]
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join([*lines, _END.format(what=what, licence=contract["licence"])])


def _labels(classifier: Record) -> list[str]:
    titles = ["label", "uncertain labels", "AUROC on validation", "calibration", "specificity: threshold on the logit"]
    rows = []
    for label in classifier["labels"]:
        policy = classifier["label_policies"].get(label, {}).get("uncertain", "not recorded")
        points = (
            f"{point['specificity']:g}: {point['threshold']:.3f}" for point in classifier["operating_points"][label]
        )
        auroc, kind = classifier["val_auroc"][label], classifier["calibration"][label]["kind"]
        rows.append(_row([label, policy, _number(auroc), kind, "; ".join(points) or "none"]))
    exclusive = "Of these labels an image has exactly one. " if classifier["exclusive"] else ""
    top = classifier.get("top_patches")
    patches = f"A label's logit is the mean of its {top} highest patch scores. " if top else ""
    return [
        f"{exclusive}{patches}Scores of the test split are not kept with a classifier: "
        "`medmoco evaluate`, `finetune` and `external` write them.",
        "",
        _row(titles),
        _rule(len(titles)),
        *rows,
    ]


def _origin(facts: Record, encoder: Record) -> list[str]:
    kinds = {
        "run": "a momentum-contrast run",
        "random": "random weights",
        "file": "a weights file",
        "export": "an export",
        "import": "weights of another project",
    }
    step = f", step {encoder['step']}" if isinstance(encoder.get("step"), int) else ""
    return [
        f"- Trained: {facts['trained']}, seed {facts['seed']}",
        f"- Its encoder started from {kinds.get(str(encoder.get('kind')), 'an unknown place')}{step}",
        f"- Written by medmoco {facts['medmoco']}",
    ]


def _progress(status: Record) -> str:
    words = {
        "done": "went to its end",
        "running": "had not ended when this was exported",
        "stopped": "was stopped before its end",
        "failed": "failed before its end",
    }
    known, steps = words.get(str(status.get("state")), "left no record of how it ended"), status.get("steps")
    return f"{known}; {steps} steps were planned" if isinstance(steps, int) else known


def _data(facts: RunFacts) -> list[str]:
    digest = facts.environment.get("manifest_sha256")
    lines = [f"- SHA-256 of the training manifest: {digest}"] if isinstance(digest, str) else []
    train = facts.train
    if train is None:
        return [*lines, "- Counts: unknown; the manifest could not be read at export, or has changed since the run"]
    patients = f"{np.unique(train.patients).size}" if "PatientID" in train.table else "an unknown number of"
    lines.append(f"- Training: {len(train)} images of {patients} patients, used without labels")
    if train.label_names:
        lines += ["", "| label of the training images | positive | negative | uncertain | missing |", _rule(5)]
    for name, column in zip(train.label_names, train.raw_labels.T, strict=True):
        counts = [int((column == value).sum()) for value in (1, 0, -1)]
        lines.append(_row([name, *counts, int(np.isnan(column).sum())]))
    return lines


def _method(settings: RunSettings) -> list[str]:
    chosen = {key: value for key, value in flatten(as_tree(settings)) if key.startswith(_SETTINGS)}
    start = "weights that the user gave" if settings.model.init else "random weights"
    return [
        "- Momentum contrast (He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297; Chen et al. 2021, "
        "arXiv:2104.02057); the query encoder without its projector is what is exported",
        f"- Started from {start}",
        "",
        "```yaml",
        *to_yaml(chosen).splitlines(),
        "```",
    ]


def _compute(facts: RunFacts) -> list[str]:
    known = {key: facts.environment.get(key) for key in ("device", "precision", "threads", "python")}
    lines = [f"- {key}: {value}" for key, value in known.items() if isinstance(value, str | int)]
    batch, seconds, before = facts.settings.train.global_batch_size, 0.0, 0
    for record in facts.speed:
        seconds += (record["step"] - before) * batch / record["images_per_second"]
        before = record["step"]
    if seconds:
        rate = before * batch / seconds
        lines.append(
            f"- {before} training steps took {timedelta(seconds=round(seconds))} at {rate:.0f} images per second"
        )
    return lines or ["Not recorded."]


def _scores(scores: Sequence[Score] | None) -> list[str]:
    if scores is None:
        return ["None: `medmoco evaluate` has not written to the run's folder `evaluation`."]
    rows = [score for score in scores if score.split == "test"]
    if not rows:
        return ["None on a test split."]
    titles = [
        "label",
        "rows",
        "method",
        "encoder",
        "images",
        "positive",
        "patients",
        "AUROC",
        "95 %",
        "average precision",
    ]
    return [
        "Frozen features as last evaluated for this run, beside their controls, on the test split alone: validation "
        "chose the strength of the probe. Intervals are over patients.",
        *(f"\n**{line}.**" for line in leak_lines({"test": rows[0].leakage})),
        "",
        _row(titles),
        _rule(len(titles)),
        *map(_score_row, rows),
    ]


def _score_row(score: Score) -> str:
    where, fraction = score.where, score.label_fraction or 1.0
    rows = "all" if not where else "some, chosen by id" if any(name in where for name in _ID_COLUMNS) else where
    if fraction < 1:
        rows += f"; labels of {100 * fraction:g} % of training patients"
    auroc = _number(score.auroc) + (" (decides like the majority)" if score.flag else "")
    known = [score.method, score.encoder, score.n, score.n_positive, score.n_patients]
    interval = "none" if score.auroc_low is None else span(score.auroc_low, score.auroc_high)
    return _row([score.label, rows, *known, auroc, interval, _number(score.average_precision)])


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float | int) else "undefined"


def _row(cells: Sequence[Any]) -> str:
    """Write a table row; a user's own text stays inside its cell."""
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _files(contract: Record, parity: Record) -> list[str]:
    rows = [_row([name, f"{file['bytes']:,}", file["sha256"]]) for name, file in contract["files"].items()]
    proofs = [
        _row([proof["format"], proof["path"], f"{proof['max_relative_difference']:.1e}", f"{proof['tolerance']:g}"])
        for proof in parity["formats"]
    ]
    loads = [["", f"# {name}", *form["load"]] for name, form in contract["formats"].items()]
    return [
        _row(["file", "bytes", "SHA-256"]),
        _rule(3),
        *rows,
        "",
        _row(["format", "load", "difference", "allowed"]),
        _rule(4),
        *proofs,
        "",
        "The difference is the largest to the network that was trained, as a share of the largest output; "
        "`parity.json` has the details and `preprocessing.json` says how to prepare images.",
        "",
        "```python",
        *[line for load in loads for line in load][1:],
        "```",
    ]
