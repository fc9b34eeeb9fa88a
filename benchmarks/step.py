"""The training step against its floor: the bare encoders' forward and backward passes at the same settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.turns import report, seconds_per_round
from medmoco.config import MethodSettings, ModelSettings, TrainSettings, ViewSettings
from medmoco.data.augment.normalisation import memory_layout, to_float
from medmoco.models.backbones import create_backbone
from medmoco.models.batch_norm import forget_statistics, settle_statistics, split_batch_norm
from medmoco.models.moco import MoCo, create_moco, info_nce
from medmoco.training.device import autocast, choose_device, choose_precision
from medmoco.training.optim import create_optimizer

ROUNDS, STEPS = 5, 2
SIZES = ((96, 128, 2048), (96, 128, 65536), (224, 32, 65536))
"""Sides of the views, images of a batch, and negatives in the queue."""

FLOOR = "floor: bare encoders"


def run() -> None:
    """Print one table for each size of views and queue."""
    for size, batch, queue in SIZES:
        contestants, where = steps("resnet18", size, batch, queue)
        times = seconds_per_round(contestants, ROUNDS)
        title = f"ResNet-18, {size} px, batch {batch}, queue {queue}, {where}"
        report(title, times, per_round=STEPS * batch, unit="images", reference=FLOOR)


def steps(
    backbone: str, size: int, batch: int, queue: int, *, dimensions: int = 2, splits: int = 8
) -> tuple[dict[str, Callable[[], None]], str]:
    """Return steps of the bare encoders and of medmoco, with and without split batch norm, and device and precision."""
    train = TrainSettings(global_batch_size=batch)
    device = choose_device(train)
    precision, _ = choose_precision(train, device)
    shape = (batch, 1, *[size] * dimensions)
    views = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(2)]
    shuffle = torch.randperm(batch, device=device)
    layout = memory_layout(dimensions, channels_last=True)

    def model(splits: int = 1) -> MoCo:
        encoder = create_backbone(ModelSettings(backbone=backbone), seed=0, size=size, dimensions=dimensions)
        made = create_moco(encoder, MethodSettings(queue_size=queue), seed=0)
        split_batch_norm(made, splits)
        made.to(device).to(memory_format=layout)
        return made.train()

    def repeat(step: Callable[[MoCo, torch.optim.Optimizer], None], splits: int = 1) -> Callable[[], None]:
        made = model(splits)
        optimizer = create_optimizer(train, made.query_encoder)

        def work() -> None:
            for _ in range(STEPS):
                step(made, optimizer)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return work

    def full_step(made: MoCo, optimizer: torch.optim.Optimizer) -> None:
        query, key = (to_float(view, ViewSettings(size=size), device, channels_last=True) for view in views)
        with autocast(device, precision):
            made.update_key_encoder()
            keys = made.embed_keys(key, shuffle)
            q = functional.normalize(made.query_encoder(query), dim=1)
            loss = info_nce(*made.compare(q, keys))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        made.enqueue(keys)
        settle_statistics(made)

    def bare_step(made: MoCo, optimizer: torch.optim.Optimizer) -> None:
        query, key = (to_float(view, ViewSettings(size=size), device, channels_last=True) for view in views)
        with autocast(device, precision):
            with torch.no_grad():
                made.key_encoder(key)
            loss = made.query_encoder(query).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        forget_statistics(made)

    contestants = {
        FLOOR: repeat(bare_step),
        "medmoco": repeat(full_step),
        f"medmoco, {splits} batch-norm groups": repeat(full_step, splits=splits),
    }
    return contestants, f"{device.type} {precision}"
