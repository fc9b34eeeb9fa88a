"""What is exported: an encoder, alone or with a classifier's head, and how images are prepared for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medmoco.config import RunSettings, Tree
from medmoco.evaluation.classifier import load_classifier
from medmoco.models.backbones import Backbone
from medmoco.training.checkpoint import load_backbone


@dataclass(frozen=True)
class Preparation:
    """From a file to the network's input; names and units are those of the settings.

    Attributes:
        canvas_size: Longer side in pixels of the stored image.
        bit_depth: 8 or 16.
        window: "voi", "full", or centre and width.
        mean: Subtracted from pixels as shares of white.
        std: Divides them then.
        size: Side in pixels of the whole image as the network takes it.
        mirror: Outputs are meant as the mean over the image and its mirror image.
    """

    canvas_size: int
    bit_depth: int
    window: str | tuple[float, float]
    mean: float
    std: float
    size: int
    mirror: bool


@dataclass(frozen=True)
class Subject:
    """One network, in float32 and eval mode on the CPU.

    Attributes:
        backbone: The encoder, of F features.
        preparation: How images are prepared for it.
        source: What `load_backbone` says the encoder is.
        head: (L, F), whose outputs are log-odds; None for an encoder alone.
        classifier: Content of classifier.json; None for an encoder alone.
    """

    backbone: Backbone
    preparation: Preparation
    source: dict[str, Any]
    head: nn.Linear | None = None
    classifier: Tree | None = None


def from_encoder(source: str, settings: RunSettings, warn: Callable[[str], None]) -> Subject:
    """Return an encoder alone.

    Args:
        source: Run folder or weights file.
        settings: Of the run, or those that the weights are to be used with.
        warn: Told of damaged checkpoints that are passed over.

    Raises:
        CheckpointError: it cannot be read.
    """
    backbone, facts = load_backbone(source, settings, warn)
    data, views, scored = settings.data, settings.views, settings.evaluate
    size = scored.size or views.size
    preparation = Preparation(data.canvas_size, data.bit_depth, data.window, views.mean, views.std, size, scored.mirror)
    return Subject(backbone.float().eval(), preparation, facts)


def from_classifier(folder: Path) -> Subject:
    """Return the encoder and the head of a classifier folder, as `evaluate` and `finetune` leave it.

    Raises:
        CheckpointError: it cannot be read.
    """
    classifier, facts = load_classifier(folder)
    window = facts["data"]["window"]
    preparation = Preparation(
        **{**facts["data"], "window": window if isinstance(window, str) else tuple(window)},
        **facts["views"],
        size=facts["size"],
        mirror=facts["mirror"],
    )
    return Subject(classifier.backbone.float().eval(), preparation, facts["encoder"], classifier.head, facts)
