"""Wires a pretraining run: settings -> split, views, MoCo, loop, run folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor

from medmoco.config import RunSettings, Tree
from medmoco.data.loading import Batch, check_images, to_float, training_batches
from medmoco.data.manifest import Split, load_manifest
from medmoco.data.order import SHUFFLE, WEIGHTS, StepOrder, hashed, permutation
from medmoco.data.overlap import overlap_notices
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.batch_norm import split_batch_norm
from medmoco.models.moco import MoCo, create_moco, info_nce
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.device import choose_device, choose_precision
from medmoco.training.engine import Hooks, TrainState, fit
from medmoco.training.optim import create_optimizer
from medmoco.training.run_folder import (
    CHECKPOINTS,
    check_changes,
    claim,
    describe_run,
    facts_of,
    holding,
    keeping_status,
    load_newest,
    restore,
    write_status,
)
from medmoco.training.runlog import RunLog

Monitor = Callable[[Backbone, dict[str, Split], RunSettings], dict[str, float]]
"""Scores a backbone on the splits during training; given by the caller, since scoring lies above training."""


class Contrast:
    """The task of the training loop: InfoNCE between two views."""

    def __init__(self, model: MoCo, settings: RunSettings, device: torch.device) -> None:
        self.model = model
        self._settings = settings
        self._device = device
        self._keys: Tensor | None = None

    def training_step(self, batch: Batch, measure: bool) -> dict[str, Tensor]:
        """Return the loss of a two-view batch, and meters of collapse and short cuts."""
        settings = self._settings
        query_views, key_views = (
            to_float(views, settings.views, self._device, channels_last=settings.train.channels_last)
            for views in batch.views
        )
        order = permutation(settings.seed, SHUFFLE, batch.step, length=len(batch.samples))
        shuffle = torch.from_numpy(order).to(self._device)
        q, self._keys, positive, negative = self.model(query_views, key_views, shuffle)
        outputs = {"loss": info_nce(positive, negative)}
        return outputs | meters(q, positive, negative, self.model.temperature) if measure else outputs

    def after_step(self) -> None:
        """Let the keys become negatives."""
        assert self._keys is not None
        self.model.enqueue(self._keys)


@torch.no_grad()
def meters(q: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> dict[str, Tensor]:
    """Measure how the embedding fares.

    Args:
        q: (B, D), unit L2 norm.
        positive: (B,) logits.
        negative: (B, K) logits.
        temperature: That divided them.

    Returns:
        chance: Loss of a guess, ln(1 + K), nats.
        accuracy: Share of queries closer to their key than to every negative.
        positive_similarity: Mean cosine of query and key.
        embedding_std: Spread of the embedding times sqrt(D): 1 when it fills the sphere, 0 when it has collapsed.
        effective_rank: Dimensions in use, exp of the entropy of the singular values. Source: Roy and Vetterli 2007.
    """
    singular = torch.linalg.svdvals(q.float())
    share = singular / singular.sum()
    return {
        "chance": torch.tensor(math.log(1 + negative.shape[1])),
        "accuracy": (positive > negative.amax(1)).float().mean(),
        "positive_similarity": positive.mean() * temperature,
        "embedding_std": q.std(0).mean() * math.sqrt(q.shape[1]),
        "effective_rank": torch.exp(-(share * torch.log(share + 1e-12)).sum()),
    }


def pretrain(
    settings: RunSettings,
    *,
    monitor: Monitor,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
) -> None:
    """Pretrain an encoder on the training split and leave a run folder.

    Args:
        settings: Of the run.
        monitor: Scores the backbone every `train.knn_every` epochs.
        resume: Go on from the newest checkpoint in the folder; from step 0 where there is none yet.
        overwrite: Delete a run that is in the folder.
        allow_change: Resume although settings or the manifest have changed.

    Raises:
        SettingsError: the queue or the batch exceeds the training split; the folder holds another run.
        CheckpointError, DataError, DivergedError, Stopped: see there; status.json then says which.
    """
    device = choose_device(settings.train)
    precision, why = choose_precision(settings.train, device)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    loaded = load_manifest(settings.data, ("train", "val") if settings.data.labels else ("train",))
    splits = {name: check_images(split, settings.data) for name, split in loaded.items()}
    check_sizes(len(splits["train"]), settings)
    facts = facts_of(settings, splits["train"])
    order = StepOrder(settings.seed, len(splits["train"]), settings.train.global_batch_size, settings.train.epochs)

    warnings: list[str] = []
    with holding(settings.out, warnings.append):
        claim(settings.out, resume=resume, overwrite=overwrite)
        saved = load_newest(settings.out, warnings.append) if resume else None
        changes = check_changes(saved, facts, allow=allow_change) if saved else []
        state = create_state(settings, device, precision)
        if saved:
            restore(state, saved)
        describe_run(settings.out, settings, device, precision, splits["train"].sha256)

        with RunLog(settings.out, steps=order.steps, start_step=state.step) as log:
            for notice in [*splits["train"].notices, *overlap_notices(splits)]:
                log.say(notice)
            if resume and not saved:
                log.say("the run folder holds no checkpoint yet: starting from step 0")
            for warning in [*warnings, *changes]:
                log.warn(warning)
            log.say(
                f"{'resuming' if saved else 'pretraining'} {settings.model.backbone} by {settings.method.name}"
                f" on {len(splits['train'])} images, {order.steps} steps of {order.batch_size},"
                f" from step {state.step}, {device.type}, {precision} ({why})"
            )
            with keeping_status(settings.out, state, order.steps):
                _train(state, splits, settings, order, device, precision, facts, log, monitor)
            log.say(f"done: {order.steps} steps; the encoder is in the run folder's checkpoints/")


def _train(
    state: TrainState,
    splits: dict[str, Split],
    settings: RunSettings,
    order: StepOrder,
    device: torch.device,
    precision: str,
    facts: Tree,
    log: RunLog,
    monitor: Monitor,
) -> None:
    model = state.model
    assert isinstance(model, MoCo)

    def save(now: TrainState) -> None:
        save_checkpoint(settings.out / CHECKPOINTS, now.step, {**now.as_content(), **facts})
        write_status(settings.out, "running", now.step, order.steps)

    def after_epoch(epoch: int) -> dict[str, float]:
        due = settings.train.knn_every and (epoch + 1) % settings.train.knn_every == 0
        if not due or not settings.data.labels:
            return {}
        return monitor(model.query_encoder.backbone, splits, settings)  # type: ignore[arg-type]

    task = Contrast(model, settings, device)
    with closing(training_batches(splits["train"], settings, order, state.step)) as batches:
        fit(task, batches, state, order, settings.train, precision, log, Hooks(save, after_epoch))


def create_state(settings: RunSettings, device: torch.device, precision: str) -> TrainState:
    """Return the model at its start, on the device, with its optimiser."""
    backbone = create_backbone(settings.model, seed=settings.seed, size=settings.views.size)
    model = create_moco(backbone, settings.method, seed=int(hashed(settings.seed, WEIGHTS, 1)[0] >> 1))
    split_batch_norm(model, settings.method.batch_norm_splits)
    layout = torch.channels_last if settings.train.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)
    if settings.train.compile:
        model.query_encoder.compile()
        model.key_encoder.compile()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return TrainState(model, create_optimizer(settings.train, model.query_encoder), scaler)


def check_sizes(images: int, settings: RunSettings) -> None:
    """Refuse a batch or a queue larger than the training split.

    Raises:
        SettingsError: it is.
    """
    queue, batch = settings.method.queue_size, settings.train.global_batch_size
    if batch > images:
        raise SettingsError(f"train.global_batch_size {batch} exceeds the {images} training images; lower it")
    if queue > images:
        raise SettingsError(
            f"method.queue_size {queue} exceeds the {images} training images: the queue would hold earlier keys of\n"
            f"the query's own image and push the two apart. Set method.queue_size to {images} or less."
        )
