"""Optimiser, parameter groups, and the learning rate as a pure function of the epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim.lars import Lars
from torch import nn

from medmoco.config import MethodSettings, TrainSettings


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


def key_momentum(method: MethodSettings, progress: float) -> float:
    """Return the momentum of the key encoder at a progress of training from 0 to 1.

    Source: Chen et al. 2021 (arXiv:2104.02057), section 4: a half cosine.
    """
    if method.key_momentum_end is None:
        return method.key_momentum
    left = 0.5 * (1 + math.cos(math.pi * progress))
    return method.key_momentum_end - left * (method.key_momentum_end - method.key_momentum)


def create_optimizer(train: TrainSettings, module: nn.Module) -> torch.optim.Optimizer:
    """Build SGD, AdamW or LARS over the trainable parameters of `module`."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, train.lr, train.sgd_momentum, weight_decay=train.weight_decay)
    # Norm weights and biases are vectors: decaying them shrinks activations without regularising.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "lars":  # from timm; as published, it does not adapt the rates of parameters without decay
        return Lars(groups, train.lr, train.sgd_momentum)
    return torch.optim.AdamW(groups, train.lr)


def create_layered_optimizer(
    train: TrainSettings, net: nn.Module, head: nn.Module, *, layer_decay: float, head_lr: float
) -> torch.optim.Optimizer:
    """Build SGD or AdamW with learning rates that decrease from the last layer to the first.

    The training loop multiplies the rate of the schedule by each group's `lr_scale`. timm's `param_groups_layer_decay`
    does the same, but treats a network of another library as one layer. Source: Bao et al. 2022 (arXiv:2106.08254).

    Args:
        train: Training settings; `lr` is the rate of the last layer of `net`. Norms and biases do not decay.
        net: Encoder; its frozen parameters are left out.
        head: Classifier.
        layer_decay: Learning rate of a layer as a fraction of that of the next layer.
        head_lr: Peak rate of the head.
    """
    of_timm: Any = net
    depths = layer_depths(net)
    last = max(depths.values())
    undecayed = of_timm.no_weight_decay() if hasattr(net, "no_weight_decay") else set()
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    scaled = [(name, p, layer_decay ** (last - depths[name])) for name, p in net.named_parameters()]
    scaled += [(name, p, head_lr / train.lr) for name, p in head.named_parameters()]
    for name, parameter, scale in scaled:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in undecayed
            decay = train.weight_decay if decays else 0.0
            group = {"params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((scale, decays), group)["params"].append(parameter)
    if train.optimizer == "sgd":
        return torch.optim.SGD(list(groups.values()), train.lr, train.sgd_momentum)
    return torch.optim.AdamW(list(groups.values()), train.lr)


def layer_depths(net: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter by name, from 0: as timm's networks state it, else by the order of blocks."""
    of_timm: Any = net
    if hasattr(net, "group_matcher"):
        depths: dict[str, int] = group_parameters(net, of_timm.group_matcher(coarse=False), reverse=True)
        return depths
    blocks = {name: tuple(name.split(".")[:2]) for name, _ in net.named_parameters()}
    order = list(dict.fromkeys(blocks.values()))
    return {name: order.index(block) for name, block in blocks.items()}
