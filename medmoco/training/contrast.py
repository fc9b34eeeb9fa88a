"""The task that pretraining trains on: momentum contrast between two views, on one process or several."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from medmoco.config import RunSettings
from medmoco.data.loading import Batch, to_float
from medmoco.data.order import WEIGHTS, hashed, key_order
from medmoco.errors import SettingsError
from medmoco.models.backbones import create_backbone
from medmoco.models.batch_norm import forget_statistics, settle_statistics, split_batch_norm
from medmoco.models.moco import MoCo, create_moco, info_nce
from medmoco.training.device import autocast
from medmoco.training.distributed import ALONE, Group, gradients_stay_here
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_optimizer


class Contrast:
    """The task of the training loop: InfoNCE between two views."""

    def __init__(
        self, model: MoCo, settings: RunSettings, device: torch.device, precision: str, group: Group = ALONE
    ) -> None:
        self.model = model
        self._settings = settings
        self._device = device
        self._precision = precision
        self._group = group
        self._encode = group.wrap(model.query_encoder, device)
        self._keys: Tensor | None = None

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the loss of each part of a two-view batch, and meters of collapse and short cuts."""
        model, parts = self.model, self._settings.train.accumulation_steps
        whole_batch = len(batch.samples) * self._group.size
        shuffle = torch.from_numpy(key_order(self._settings.seed, batch.step, whole_batch)).to(self._device)
        with autocast(self._device, self._precision):
            self._keys = model.embed_keys(self._floats(batch.views[1]), shuffle, parts)  # (B, D)
        own = self._keys[self._group.share.of(whole_batch)]  # (b, D)
        for part, (views, k) in enumerate(zip(batch.views[0].chunk(parts), own.chunk(parts), strict=True)):
            with gradients_stay_here(self._encode, part < parts - 1):
                with autocast(self._device, self._precision):
                    q = functional.normalize(self._encode(self._floats(views)), dim=1)  # (b, D)
                    positive, negative = model.compare(q, k)
                outputs = {"loss": info_nce(positive, negative)}
                if measure:
                    outputs |= meters(q, positive, model)
                yield {name: value / parts for name, value in outputs.items()}

    def _floats(self, views: Tensor) -> Tensor:
        return to_float(views, self._settings.views, self._device, channels_last=self._settings.train.channels_last)

    def after_step(self) -> None:
        """Let the keys become negatives and the running statistics move."""
        assert self._keys is not None
        self.model.enqueue(self._keys)
        settle_statistics(self.model, self._group.mean)

    def skip_step(self) -> None:
        """Keep the queue and the running statistics as they were."""
        forget_statistics(self.model)


@torch.no_grad()
def meters(q: Tensor, positive: Tensor, model: MoCo) -> dict[str, Tensor]:
    """Measure how the embedding fares.

    Args:
        q: (B, D), unit L2 norm.
        positive: (B,) logits.
        model: Holds the queue.

    Returns:
        chance: Loss of a guess, ln(1 + K), nats.
        accuracy: Share of queries closer to their key than to every negative.
        positive_similarity: Mean cosine of query and key.
        embedding_std: Spread of the embedding times sqrt(D): 1 when it fills the sphere, 0 when it has collapsed.
        effective_rank: Dimensions in use, exp of the entropy of the singular values. Source: Roy and Vetterli 2007.
    """
    finite = torch.where(q.isfinite().all(), q.float(), 0.0)  # LAPACK refuses anything else; zeros end as nan
    singular = torch.linalg.svdvals(finite)
    share = singular / singular.sum()
    return {
        "chance": torch.tensor(math.log(1 + model.queue_size)),
        "accuracy": (positive > model.hardest_negative(q)).float().mean(),
        "positive_similarity": positive.mean() * model.temperature,
        "embedding_std": q.std(0).mean() * math.sqrt(q.shape[1]),
        "effective_rank": torch.exp(-(share * torch.log(share + 1e-12)).sum()),
    }


def create_state(settings: RunSettings, device: torch.device, precision: str, group: Group = ALONE) -> TrainState:
    """Return the model at its start, on the device, with its optimiser."""
    backbone = create_backbone(settings.model, seed=settings.seed, size=settings.views.size)
    seed = int(hashed(settings.seed, WEIGHTS, 1)[0] >> 1)
    model = create_moco(backbone, settings.method, seed=seed, processes=group)
    passes = group.size * settings.train.accumulation_steps
    split_batch_norm(model, batch_norm_groups(settings, group.size) // passes)
    layout = torch.channels_last if settings.train.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)
    if settings.train.compile:
        model.query_encoder.compile()
        model.key_encoder.compile()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return TrainState(model, create_optimizer(settings.train, model.query_encoder), scaler)


def batch_norm_groups(settings: RunSettings, processes: int) -> int:
    """Return over how many groups of the whole batch batch norm takes its statistics.

    As many as `method.batch_norm_splits` says, but at least one for each forward pass: of each process, and of each
    part that a process works through its share in.

    Raises:
        SettingsError: the batch does not divide so.
    """
    train, splits = settings.train, settings.method.batch_norm_splits
    passes = processes * train.accumulation_steps
    groups = math.lcm(splits, passes)
    if train.global_batch_size % groups or train.global_batch_size // groups < 2:
        raise SettingsError(
            f"train.global_batch_size {train.global_batch_size} does not divide into {groups} equal groups of 2 or"
            f" more:\n{processes} processes x train.accumulation_steps {train.accumulation_steps}, and"
            f" method.batch_norm_splits {splits}.\nSet it to a multiple of {groups}, such as"
            f" {max(2, round(train.global_batch_size / groups)) * groups}."
        )
    return groups


def traffic(group: Group, settings: RunSettings, steps: int, model: MoCo) -> str:
    """Say what this process has sent in each of so many steps, next to what gathering images would have cost.

    Source: facebookresearch/moco gathers the key views of all processes as float32 (`_batch_shuffle_ddp`).
    """
    weights = sum(p.numel() * p.element_size() for p in model.query_encoder.parameters() if p.requires_grad)
    sent = {"gradients": 2 * weights * (group.size - 1) // group.size}  # a ring's share; DDP does not tell
    sent |= {purpose: count // max(steps, 1) for purpose, count in group.sent.items()}
    shares = ", ".join(f"{purpose} {count / 1e6:.3g}" for purpose, count in sent.items() if count > 0)
    images = settings.train.global_batch_size // group.size * settings.views.size**2 * 4 * (group.size - 1)
    return (
        f"each process sends {sum(sent.values()) / 1e6:.3g} MB a step ({shares}); gathering key images instead of"
        f" embeddings, as facebookresearch/moco does, would add {images / 1e6:.3g} MB"
    )


def check_sizes(images: int, settings: RunSettings, processes: int = 1) -> None:
    """Refuse a batch or a queue that does not fit the training split or the processes.

    Raises:
        SettingsError: it does not.
    """
    queue, batch = settings.method.queue_size, settings.train.global_batch_size
    if batch > images:
        raise SettingsError(f"train.global_batch_size {batch} exceeds the {images} training images; lower it")
    if queue > images:
        raise SettingsError(
            f"method.queue_size {queue} exceeds the {images} training images: the queue would hold earlier keys of\n"
            f"the query's own image and push the two apart. Set method.queue_size to {images} or less."
        )
    if settings.method.queue_sharded and queue % processes:
        raise SettingsError(
            f"method.queue_size {queue} cannot be divided among {processes} processes;"
            f" set it to {queue // processes * processes}, or method.queue_sharded=false"
        )
    batch_norm_groups(settings, processes)
