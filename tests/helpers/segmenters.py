"""Segmentation networks with random weights, saved as `segment` saves them."""

from __future__ import annotations

from pathlib import Path

import torch

from medmoco.models.backbones import create_backbone
from medmoco.segmentation.masks.masks import Classes
from medmoco.segmentation.networks import create_network
from medmoco.segmentation.segment import settings_of_run
from medmoco.segmentation.segmenter import Segmenter, load_segmenter, save_segmenter
from tests.helpers.blobs import LARGE, SMALL, UNSURE, make_settings


def make_segmenter(folder: Path, dimensions: int, *overrides: str) -> Segmenter:
    """Save a network in a folder, and load it."""
    settings = settings_of_run(make_settings(Path("nowhere"), dimensions, *overrides), folder)
    backbone = create_backbone(
        settings.model, seed=0, size=settings.views.size, channels=settings.data.channel_count, dimensions=dimensions
    )
    network = create_network(backbone, settings, 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # so that the classes compete: initial weights of nnU-Net give nearly equal scores
        for parameter in network.decoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    classes = Classes(("large", "small"), (LARGE, SMALL), UNSURE)
    save_segmenter(folder, network.eval(), classes, settings, encoder={"kind": "random"}, val_dice=0.5)
    return load_segmenter(folder)
