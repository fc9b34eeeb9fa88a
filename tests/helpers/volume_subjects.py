"""Encoders of volumes, as exports take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import ModelSettings
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.evaluation.features.encoder import Encoder
from medmoco.evaluation.features.encoder_files import Provenance
from medmoco.exporting.subject import Subject, subject_of
from medmoco.models.backbones import create_backbone

MR = {"bit_depth": 8, "window": "percentiles", "spacing": (1.5, 1.0, 2.0), "mean": 0.3, "std": 0.2}
CT = {"bit_depth": 16, "window": (40.0, 400.0), "spacing": None, "mean": 0.4, "std": 0.25}


def prepared(size: int = 32, **changes: Any) -> Preprocessing:
    return Preprocessing(**{"canvas_size": 256, "dimensions": 3, "size": size, **MR, **changes})


def volume_encoder(name: str = "monai/resnet10_quarter", size: int = 32, **changes: Any) -> Encoder:
    """Return an encoder whose norms have seen something."""
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=size, dimensions=3).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm3d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    return Encoder(backbone, prepared(size, **changes), Provenance("random"))


def volume_subject(name: str = "monai/resnet10_quarter", size: int = 32, **changes: Any) -> Subject:
    return subject_of(volume_encoder(name, size, **changes))


def head_like(shape: tuple[int, int, int] = (40, 50, 30), seed: int = 0) -> NDArray[np.float32]:
    """Return a bright ellipsoid with structure, and a dark cavity, in noise."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1.3, 1.3, side) for side in shape), indexing="ij")
    radius = np.sqrt(x**2 + (1.1 * y) ** 2 + (0.9 * z - 0.1) ** 2)
    values = np.where(radius < 1, 600 + 200 * np.sin(5 * x) * np.cos(4 * y + z), 0)
    values[radius < 0.3] = 30
    return (values + 10 * generator.random(shape)).astype(np.float32)
