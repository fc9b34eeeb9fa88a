"""Exports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    from medmoco.evaluation.features.encoder import Encoder
    from medmoco.evaluation.supervised.classifier import Classifier


def export(
    network: PathLike | Encoder | Classifier,
    out: PathLike,
    formats: Sequence[str] = ("safetensors", "onnx"),
    *,
    licence: str = "not stated",
) -> list[Path]:
    """Write an encoder or a classifier with everything needed to use it elsewhere, and verify every file.

    Args:
        network: Run folder, classifier folder, or what `load_encoder` or `load_classifier` returned.
        out: New or empty folder.
        formats: Of safetensors, timm, torchvision, detectron2, huggingface, monai-bundle, onnx and program; or "all".
        licence: Licence of the weights, for the model card.

    Returns:
        The files: weights, preprocessing.json, prepare.py, parity.json and MODEL_CARD.md.

    Raises:
        SettingsError: `out` is not empty, or a format cannot hold the network.
        CheckpointError: a file does not reproduce the network's outputs, or contains a patient's ID or a path.

    Example:
        >>> import medmoco
        >>> files = medmoco.export("runs/phantoms", "encoder-export", ["safetensors"])
        >>> sorted(file.name for file in files)[0]
        'MODEL_CARD.md'
    """
    from medmoco.evaluation.features.encoder import load_encoder
    from medmoco.evaluation.supervised.classifier import load_classifier
    from medmoco.evaluation.supervised.classifier_folder import FACTS
    from medmoco.exporting.export import export as write

    if isinstance(network, str | os.PathLike):
        is_classifier = (Path(network) / FACTS).is_file()
        network = load_classifier(network) if is_classifier else load_encoder(network)
    return write(network, Path(out), formats, licence=licence)
