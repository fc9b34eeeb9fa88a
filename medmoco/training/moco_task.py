"""The pretraining task: momentum contrast between two views, with or without a decoder, or a decoder alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medmoco.config import MethodSettings, RunSettings
from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.pairs import plan_of
from medmoco.data.loading.sampler import key_order
from medmoco.data.manifest.manifest import Split
from medmoco.models.backbones import Backbone, check_size, create_backbone, fix_patches
from medmoco.models.batch_norm import forget_statistics, settle_statistics, split_batch_norm
from medmoco.models.decoder import weighted_squared_error
from medmoco.models.moco import MoCo, Negatives, batch_negatives, create_moco, info_nce
from medmoco.training.context import RunContext
from medmoco.training.device import autocast
from medmoco.training.distributed import gradients_stay_here, join_batch_norm
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_optimizer, key_momentum
from medmoco.training.sizes import batch_norm_groups
from medmoco.utils.rng import WEIGHTS, hashed


class Contrast:
    """The task of the training loop: InfoNCE between two views, in one direction or both."""

    def __init__(self, model: MoCo, context: RunContext, *, numbers: Tensor | None = None, steps: int = 1) -> None:
        """Wire the task.

        Args:
            model: The model, on the device.
            context: Settings, device and processes of the run.
            numbers: (N,) int64, see `negative_numbers`.
            steps: Length of the run, over which the key momentum may change.
        """
        self.model = model
        self._context = context
        self._settings, self._device, self._group = context.settings, context.device, context.group
        self._numbers = numbers
        self._steps = steps
        self._plan = plan_of(self._settings.method, self._settings.decoder)
        self._encode = self._group.wrap(model.branches(), self._device)
        self._keys: list[Tensor] = []
        self._key_numbers: Tensor | None = None

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the loss of each part of a batch, with diagnostics of collapse and shortcuts where `measure` is set."""
        parts = self._settings.train.accumulation_steps
        numbers = self._numbers[batch.samples].to(self._device) if self._numbers is not None else None  # (b,)
        if self._plan.keys:
            self._key_numbers = None if numbers is None else self._group.gather(numbers, "numbers")  # (B,)
            self._keys = self._embed_keys(batch, parts)  # (B, D) for each direction
        views = [batch.views[place].chunk(parts) for place in self._plan.queries]
        weights = [of_view.chunk(parts) for of_view in batch.weights]
        share = self._group.share.of(len(batch.samples) * self._group.size)
        places = torch.arange(share.start, share.stop, device=self._device)  # of own samples in the whole batch
        for part, own in enumerate(places.chunk(parts)):
            own_numbers = None if numbers is None else numbers[own - share.start]
            floats = [self._floats(of_view[part]) for of_view in views]
            with gradients_stay_here(self._encode, part < parts - 1):
                with autocast(self._device, self._context.precision):
                    queries, reconstructions = self._encode(floats)  # (b, D) and (b, C, S, S) each
                outputs = self._contrast(queries, own, own_numbers, measure)
                if reconstructions:
                    pixel_weights = [of_view[part] for of_view in weights] if weights else [None] * len(reconstructions)
                    outputs |= self._with_reconstruction(outputs, reconstructions, floats, pixel_weights)
                yield {name: value / parts for name, value in outputs.items()}

    def _contrast(self, queries: list[Tensor], own: Tensor, numbers: Tensor | None, measure: bool) -> dict[str, Tensor]:
        """Return the loss and, with `measure`, diagnostics.

        Args:
            queries: (b, D), for each direction of the loss.
            own: (b,) int64, positions of these queries' keys in the whole batch.
            numbers: (b,) int64, see `negative_numbers`.
            measure: Add diagnostics.
        """
        outputs = embedding_diagnostics(queries[0]) if measure else {}
        if not self._keys:  # an autoencoder
            return outputs
        scale = self._settings.method.loss_scale
        losses: list[Tensor] = []
        for q, keys in zip(queries, self._keys, strict=True):
            if self.model.queue_size:
                negatives = self.model.queue_negatives(numbers)
            else:
                negatives = batch_negatives(keys, own, numbers, self._key_numbers)
            positive, negative = self.model.compare(q, keys[own], negatives)  # (b,) and (b, N)
            if measure and not losses:
                outputs |= contrast_diagnostics(positive, negative, negatives, self.model.temperature)
                outputs["chance"] = outputs["chance"] * scale
            losses.append(info_nce(positive, negative))
        return outputs | {"loss": scale * torch.stack(losses).mean()}

    def _with_reconstruction(
        self, outputs: dict[str, Tensor], made: list[Tensor], views: list[Tensor], weights: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """Return the loss including that of the decoder, and both parts."""
        decoder = self._settings.decoder
        errors = [
            weighted_squared_error(
                back, view, None if own is None else own.to(self._device) / 255, decoder.empty_weight
            )
            for back, view, own in zip(made, views, weights, strict=True)
        ]
        error = torch.stack(errors).mean()
        if "loss" not in outputs:
            return {"loss": decoder.weight * error, "reconstruction": error.detach()}
        contrast = outputs["loss"]
        loss = decoder.contrast * contrast + decoder.weight * error
        return {"loss": loss, "contrast": contrast.detach(), "reconstruction": error.detach()}

    def _embed_keys(self, batch: Batch, parts: int) -> list[Tensor]:
        """Update the key encoder, and return the keys of the whole batch for each direction of the loss."""
        whole_batch = len(batch.samples) * self._group.size
        shuffle = None
        if self._plan.shuffled:
            shuffle = torch.from_numpy(key_order(self._settings.seed, batch.step, whole_batch)).to(self._device)
        self.model.update_key_encoder(key_momentum(self._settings.method, batch.step / self._steps))
        with autocast(self._device, self._context.precision):
            return [
                self.model.embed_keys(self._floats(batch.views[place]), shuffle, parts) for place in self._plan.keys
            ]

    def _floats(self, views: Tensor) -> Tensor:
        return to_float(views, self._settings.views, self._device, channels_last=self._settings.train.channels_last)

    def after_step(self) -> None:
        """Enqueue the keys and update the running statistics."""
        for keys in self._keys:
            self.model.enqueue(keys, self._key_numbers)
        settle_statistics(self.model, self._group.mean)

    def skip_step(self) -> None:
        """Leave the queue and the running statistics unchanged."""
        forget_statistics(self.model)


def negative_numbers(split: Split, method: MethodSettings) -> Tensor | None:
    """Return a number per sample, (N,) int64: keys with a query's number are not its negatives; None if all are."""
    if method.negatives == "all":
        return None
    return torch.arange(len(split)) if method.negatives == "other_images" else torch.from_numpy(split.patients)


@torch.no_grad()
def contrast_diagnostics(
    positive: Tensor, negative: Tensor, negatives: Negatives, temperature: float
) -> dict[str, Tensor]:
    """Measure how well queries find their keys, from (B,) logits with these and (B, N) logits with the negatives.

    Returns:
        chance: Loss of a guess in nats, the mean of ln(1 + number of negatives).
        accuracy: Share of queries closer to their key than to every negative.
        positive_similarity: Mean cosine of query and key.
    """
    count = torch.full_like(positive, negative.shape[1], dtype=torch.float64)
    if negatives.excluded is not None:
        count -= negatives.excluded.sum(1)
    return {
        "chance": count.log1p().mean(),
        "accuracy": (positive > negative.amax(1)).float().mean(),
        "positive_similarity": positive.mean() * temperature,
    }


@torch.no_grad()
def embedding_diagnostics(q: Tensor) -> dict[str, Tensor]:
    """Measure how much of the sphere is filled by embeddings (B, D) of unit L2 norm.

    Returns:
        embedding_std: Standard deviation times sqrt(D): 1 if the embeddings fill the sphere, 0 if they collapsed.
        effective_rank: Dimensions in use, exp of the entropy of the singular values. Source: Roy and Vetterli 2007.
    """
    finite = torch.where(q.isfinite().all(), q.float(), 0.0)  # LAPACK refuses anything else; zeros become nan
    singular = torch.linalg.svdvals(finite)
    share = singular / singular.sum()
    return {
        "embedding_std": q.float().std(0).mean() * q.shape[1] ** 0.5,
        "effective_rank": torch.exp(-(share * torch.log(share + 1e-12)).sum()),
    }


def create_state(context: RunContext) -> TrainState:
    """Return the untrained model, on the device, with its optimiser."""
    settings, group = context.settings, context.group
    backbone = create_fitting_backbone(settings)
    seed = int(hashed(settings.seed, WEIGHTS, 1)[0] >> 1)
    model = create_moco(backbone, settings.method, seed=seed, decoder=settings.decoder, size=settings.views.size)
    model.gather = group.gather
    if settings.model.fixed_patches:
        fix_patches(backbone)
    if settings.method.batch_norm == "joined":
        join_batch_norm(model, group)
    else:
        passes = group.size * settings.train.accumulation_steps
        split_batch_norm(model, batch_norm_groups(settings, group.size) // passes)
    model = context.place(model)
    if settings.train.compile:
        model.query_encoder.compile()
        model.key_encoder.compile()
    return TrainState(model, create_optimizer(settings.train, model.branches()), context.scaler())


def create_fitting_backbone(settings: RunSettings) -> Backbone:
    """Return the untrained backbone.

    Raises:
        SettingsError: it does not exist, or does not accept images of the sizes that training and scoring use.
    """
    data = settings.data
    backbone = create_backbone(
        settings.model,
        seed=settings.seed,
        size=settings.views.size,
        channels=data.channel_count,
        dimensions=data.dimensions,
    )
    check_size(backbone, settings.views.size)
    if settings.evaluate.size and data.labels and settings.train.knn_every:
        check_size(backbone, settings.evaluate.size, "evaluate.size")
    return backbone


def traffic(context: RunContext, steps: int, model: MoCo) -> str:
    """Describe what each process sends per step, compared with gathering images.

    Source: facebookresearch/moco gathers the key views of all processes as float32 (`_batch_shuffle_ddp`).
    """
    settings, group = context.settings, context.group
    weights = sum(p.numel() * p.element_size() for p in model.branches().parameters() if p.requires_grad)
    sent = {"gradients": 2 * weights * (group.size - 1) // group.size}  # a ring's share; DDP does not report it
    sent |= {purpose: count // max(steps, 1) for purpose, count in group.sent.items()}
    shares = ", ".join(f"{purpose} {count / 1e6:.3g}" for purpose, count in sent.items() if count > 0)
    pixels = settings.views.size**settings.data.dimensions
    images = settings.train.global_batch_size // group.size * pixels * 4 * (group.size - 1)
    return (
        f"each process sends {sum(sent.values()) / 1e6:.3g} MB a step ({shares}); gathering key images instead of"
        f" embeddings, as facebookresearch/moco does, would add {images / 1e6:.3g} MB"
    )
