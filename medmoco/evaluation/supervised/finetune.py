"""`medmoco finetune`: train an encoder and a classifier on labels, in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import RunSettings, Tree
from medmoco.data.loading.loading import training_batches
from medmoco.data.loading.pairs import ONE_VIEW
from medmoco.data.loading.workers import check_shared_memory, shared_memory_place
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import extract, fingerprint
from medmoco.evaluation.metrics.auroc import auroc, or_none
from medmoco.evaluation.scoring.clinical import describe_operating_points, fit_operating_points
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.evaluation.supervised.task import Supervision, accuracies
from medmoco.evaluation.supervised.training_labels import TrainingLabels, load_training_labels, targets_of
from medmoco.models.backbones import check_size
from medmoco.models.patches import check_all_learn, check_patches
from medmoco.training.agreement import count_sharing, on_first, together
from medmoco.training.context import RunContext, prepare_context
from medmoco.training.device import memory_explained
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from medmoco.training.early_stopping import Selection, SupervisedJob, check_parts, loop_settings, train_and_select
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_layered_optimizer
from medmoco.training.run_folder import HARMLESS, NEW, StartMode, facts_of
from medmoco.utils.files import replacing
from medmoco.utils.rng import WEIGHTS, hashed

Floats = NDArray[np.float64]

CLASSIFIER, VAL_SCORES = "classifier", "val_scores.csv"

_CROP_FLIP: Tree = {
    "crop_scale": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3), "flip_probability": 0.5, "rotation": 0.0,
    "jitter_probability": 0.0, "blur_probability": 0.0, "noise_probability": 0.0, "cutout_probability": 0.0,
}  # fmt: skip
# Of these groups, fine-tuning uses only the settings that select its images and validation views.
_UNUSED = ("method.", "evaluate.")
_USED = ("evaluate.where", "evaluate.size", "evaluate.mirror")
_HARMLESS = tuple(key for key in HARMLESS if key not in ("evaluate.", "finetune."))


@dataclass(frozen=True)
class Finetuned:
    """The result of a fine-tuning run.

    Attributes:
        labels: The L labels.
        epoch: Best epoch, from 0, whose weights the classifier has.
        epochs: Number of epochs trained.
        val_auroc: AUROC on val by label; None if undefined.
        splits: The scored splits.
        targets: Targets of each scored split, (N, L), 1, 0 or nan.
        scores: Log-odds of each scored split, (N, L).
        rows: Number of training rows with each label.
        patients: Number of patients with each label.
        accuracies: top1 and top5 accuracy on val, for classes.
    """

    labels: tuple[str, ...]
    epoch: int
    epochs: int
    val_auroc: dict[str, float | None]
    splits: dict[str, Split]
    targets: dict[str, NDArray[np.float32]]
    scores: dict[str, Floats]
    rows: dict[str, int]
    patients: dict[str, int]
    accuracies: dict[str, float]


def finetune(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    splits: Sequence[str] = ("val",),
    start: StartMode = NEW,
    group: Group = ALONE,
    progress: bool = True,
) -> Finetuned | None:
    """Train an encoder and a classifier on the labels of train, and write a run folder with the classifier.

    Args:
        settings: `finetune` has the settings of the training; device and precision are those of `train`.
        encoder: Run folder, weights file, or "random" for training from scratch.
        out: Run folder.
        splits: Splits to score with the best epoch; the test split is not read unless it is named.
        start: How to treat an existing run in the folder.
        group: Processes that train together; the first one scores, logs and writes files, the others return None.
        progress: Show messages and a progress bar on stderr; log.txt has the messages in either case.

    Raises:
        SettingsError: there are no labels, or the folder holds another run.
        ManifestError: the manifest cannot be used, or test shares patients or images with the training data.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: also recorded in status.json.
    """
    context = prepare_context(settings_of_run(settings, out, group.size), group, progress=progress)
    settings = context.settings
    sharing = count_sharing(group, shared_memory_place())
    warnings: list[str] = []
    with together(group):
        loaded, labels, notices = load_training_labels(settings, encoder, splits)
        check_shared_memory(settings, settings.train.global_batch_size // group.size, sharing, views=1)
        model, source = _create_model(settings, encoder, labels, warnings.append)
    scorer = _Scorer(context, loaded, labels, model)
    facts = _facts(settings, loaded, model, source)
    job = SupervisedJob(
        split=labels.train,
        facts=facts,
        create_state=lambda: _create_state(model, source, context),
        notices=notices,
        warnings=warnings,
        harmless=_HARMLESS,
        description=f"{settings.model.backbone} with {settings.finetune.protocol} on {context.device.type},"
        f" {context.precision} ({context.reason})",
        patience=settings.finetune.patience,
        measure=scorer.measure,
        batches=lambda order, step: training_batches(labels.train, settings, order, step, group.share, ONE_VIEW),
        create_task=lambda: Supervision(model, labels, context),
    )
    with memory_explained(settings.train), ExitStack() as stack:
        selection = train_and_select(stack, context, job, start)
        return on_first(group, lambda: _finish(scorer, selection, source), patiently=True)


def settings_of_run(settings: RunSettings, out: Path, processes: int = 1) -> RunSettings:
    """Return the settings of the loop and the views, in which those of `finetune` take precedence."""
    chosen = settings.finetune
    views = settings.views.model_copy(update=_CROP_FLIP if chosen.augmentation == "crop_flip" else {})
    settings = loop_settings(settings, chosen)
    train = settings.train
    if processes > 1:
        check_parts("finetune", train, processes)
    if train.global_batch_size // (processes * train.accumulation_steps) < 2:
        where, remedy = (f" on {processes} processes", "lower one of them") if processes > 1 else ("", "lower it")
        raise SettingsError(
            f"train.accumulation_steps {train.accumulation_steps}{where} leaves parts of less than 2 images of"
            f" finetune.global_batch_size {train.global_batch_size}; {remedy}, or raise the batch size"
        )
    evaluate = settings.evaluate.model_copy(update={"stages": 1})  # all of the network learns, so the last is enough
    return settings.model_copy(update={"out": out, "views": views, "evaluate": evaluate})


def _create_model(
    settings: RunSettings, encoder: str, labels: TrainingLabels, warn: Callable[[str], None]
) -> tuple[ClassifierNetwork, dict[str, Any]]:
    """Return the encoder with an untrained head, and its `Provenance.record`."""
    loaded = load_encoder(encoder, settings, log=warn)
    backbone, source = loaded.module, loaded.provenance.record()
    check_size(backbone, settings.views.size)
    chosen = settings.finetune
    top_patches = chosen.top_patches if chosen.head == "patches" else None
    if top_patches is not None:
        size = settings.views.size
        check_patches(backbone, min(size, settings.evaluate.size or size), top_patches)
        check_all_learn(backbone, size)
    head = nn.Linear(backbone.feature_dim, len(labels.names))
    generator = torch.Generator().manual_seed(int(hashed(settings.seed, WEIGHTS, 2)[0] >> 1))
    nn.init.normal_(head.weight, std=0.01, generator=generator)  # as in the published linear probe
    nn.init.zeros_(head.bias)
    if chosen.protocol == "linear_sgd":
        backbone.requires_grad_(False)
    model = ClassifierNetwork(
        backbone, head, mirror=settings.evaluate.mirror, exclusive=labels.exclusive, top_patches=top_patches
    )
    return model, source


def _create_state(model: ClassifierNetwork, source: dict[str, Any], context: RunContext) -> TrainState:
    settings, chosen = context.settings, context.settings.finetune
    # From scratch, there is nothing to preserve in the first layers, so they learn as fast as the last.
    decay = 1.0 if source["kind"] == "random" else chosen.layer_decay
    join_batch_norm(model, context.group)
    context.place(model)
    if settings.train.compile:
        model.compile()
    optimizer = create_layered_optimizer(
        settings.train, model.backbone.net, model.head, layer_decay=decay, head_lr=chosen.head_lr
    )
    return TrainState(model, optimizer, context.scaler())


def _facts(
    settings: RunSettings, splits: Mapping[str, Split], model: ClassifierNetwork, source: dict[str, Any]
) -> Tree:
    """Return the facts in a checkpoint, which must agree when the run is resumed, such as the encoder and val."""
    facts = facts_of(settings, splits["train"])
    used = {key: value for key, value in facts["settings"].items() if key in _USED or not key.startswith(_UNUSED)}
    used |= {
        "encoder": f"{source['kind']}, SHA-256 {fingerprint(model.backbone)[:16]}",
        "validation manifest": f"{len(splits['val'])} rows, SHA-256 {splits['val'].sha256[:16]}",
    }
    return {**facts, "settings": used}


@dataclass(frozen=True)
class _Scorer:
    """Scores splits with the classifier in training."""

    context: RunContext
    splits: Mapping[str, Split]
    labels: TrainingLabels
    model: ClassifierNetwork

    def measure(self, stop_asked: Callable[[], bool]) -> tuple[float, dict[str, float]]:
        """Return the mean AUROC on val, and the metrics to log."""
        scores = self.scores("val", self.context.precision, stop_asked)
        by_label = self.aurocs("val", scores)
        mean = float(np.mean([value for value in by_label.values() if value is not None]))
        values = {"val_auroc": mean}
        values |= {f"val_auroc/{name}": value for name, value in by_label.items() if value is not None}
        values |= {f"val_{name}": value for name, value in self.accuracies("val", scores).items()}
        return mean, values

    def scores(self, split: str, precision: str, stop_asked: Callable[[], bool] | None = None) -> Floats:
        """Return the scores of a split, (N, L)."""
        settings, device = self.context.settings, self.context.device
        found = extract({"classifier": self.model}, self.splits[split], settings, device, precision, stop_asked)
        return found.features["classifier"].astype(np.float64)

    def targets(self, split: str) -> NDArray[np.float32]:
        """Return the targets of a split, (N, L)."""
        return targets_of(self.splits[split], self.labels)

    def aurocs(self, split: str, scores: Floats) -> dict[str, float | None]:
        """Return the AUROC of each label, None where undefined."""
        columns = zip(self.labels.names, self.targets(split).T, scores.T, strict=True)
        return {name: or_none(auroc(truth, score)) for name, truth, score in columns}

    def accuracies(self, split: str, scores: Floats) -> dict[str, float]:
        """Return the top1 and top5 accuracy of classes; nothing for labels."""
        return accuracies(self.targets(split), scores) if self.labels.exclusive else {}


def _finish(scorer: _Scorer, selection: Selection, source: dict[str, Any]) -> Finetuned:
    """Score with the best epoch's weights, and save the classifier."""
    settings, labels, session = scorer.context.settings, scorer.labels, selection.session
    if settings.finetune.protocol == "linear_sgd":
        _check_frozen(scorer.model, session.facts)
    scores = {name: scorer.scores(name, "fp32") for name in scorer.splits if name != "train"}
    result = Finetuned(
        labels=labels.names,
        epoch=selection.best.epoch,
        epochs=selection.best.validated,
        val_auroc=scorer.aurocs("val", scores["val"]),
        splits={name: scorer.splits[name] for name in scores},
        targets={name: scorer.targets(name) for name in scores},
        scores=scores,
        rows=labels.rows,
        patients=labels.patients,
        accuracies=scorer.accuracies("val", scores["val"]),
    )
    save_classifier(settings.out / CLASSIFIER, scorer.model, _describe(scorer, result, source))
    _write_scores(settings.out / VAL_SCORES, result)
    session.log.info(_summary(result, selection.ended_early()))
    return result


def _check_frozen(model: ClassifierNetwork, facts: Tree) -> None:
    if not facts["settings"]["encoder"].endswith(fingerprint(model.backbone)[:16]):
        raise RuntimeError("the frozen encoder changed while the classifier was trained")


def _describe(scorer: _Scorer, result: Finetuned, source: dict[str, Any]) -> Tree:
    chosen = scorer.context.settings.evaluate
    points = {
        name: fit_operating_points(
            result.targets["val"][:, number].astype(np.float64), result.scores["val"][:, number], chosen
        )
        for number, name in enumerate(result.labels)
    }
    return describe_classifier(
        scorer.context.settings, result.labels, trained="fine-tuned", encoder=source, val_auroc=result.val_auroc,
        exclusive=scorer.labels.exclusive, top_patches=scorer.model.top_patches,
        **describe_operating_points(points, chosen),
    )  # fmt: skip


def _write_scores(file: Path, result: Finetuned) -> None:
    """Write the scores of all rows of val with a known label."""
    frames = []
    for number, label in enumerate(result.labels):
        targets, scores = result.targets["val"][:, number], result.scores["val"][:, number]
        rows = pd.DataFrame({"row": result.splits["val"].rows, "label": label, "target": targets, "score": scores})
        frames.append(rows[~np.isnan(targets)].astype({"target": int}))
    with replacing(file) as temporary:
        pd.concat(frames).to_csv(temporary, index=False, float_format="%.9g")


def _summary(result: Finetuned, early: bool) -> str:
    values = {name: value for name, value in result.val_auroc.items() if value is not None}
    if len(values) > 5:
        values = {"mean": float(np.mean(list(values.values())))}
    shown = [f"{name} {value:.3f}" for name, value in values.items()]
    shown += [f"{name} {value:.1%}" for name, value in result.accuracies.items()]
    return (
        f"done: {result.epochs} epochs{', stopped early' if early else ''}; epoch {result.epoch + 1} is the best"
        f" (AUROC on val: {', '.join(shown)}); {CLASSIFIER}/ in the run folder holds it"
    )
