"""Optimiser, parameter groups, and the learning rate as a pure function of the epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from medmoco.config import TrainSettings


def learning_rate(train: TrainSettings, epoch: float) -> float:
    """Return the learning rate at a fractional epoch: linear warmup, then cosine to zero or steps of a tenth.

    Source: warmup Goyal et al. 2017 (arXiv:1706.02677); cosine Loshchilov and Hutter 2017 (arXiv:1608.03983).
    """
    if epoch < train.warmup_epochs:
        return train.lr * epoch / train.warmup_epochs
    if train.schedule == "step":
        return float(train.lr * 0.1 ** sum(epoch >= milestone for milestone in train.milestones))
    progress = (epoch - train.warmup_epochs) / (train.epochs - train.warmup_epochs)
    return train.lr * 0.5 * (1 + math.cos(math.pi * progress))


def create_optimizer(train: TrainSettings, module: nn.Module) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the trainable parameters of `module`."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, train.lr, train.sgd_momentum, weight_decay=train.weight_decay)
    # Norm weights and biases are vectors; decaying them pulls activations to zero without regularising anything.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, train.lr)
