"""Exports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmoco.api.data import Log
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


def verify(folder: PathLike, *, trust: bool = False, log: Log = lambda _: None) -> dict[str, str]:
    """Check an export anywhere: the hashes of all files, then the outputs of each format, loaded in a new process.

    Args:
        folder: Folder that `export` wrote.
        trust: Also load formats that can execute code: program and monai-bundle.
        log: Receives a table with a line for each format.

    Returns:
        For each format "verified", or why it was not checked.

    Raises:
        CheckpointError: a file is changed, missing or not part of the export, or gives other outputs.

    Example:
        >>> import medmoco
        >>> medmoco.verify("export")
        {'safetensors': 'verified', 'onnx': 'verified'}
    """
    from medmoco.exporting.verify import verify as check_export

    return check_export(Path(folder), log, trust=trust)
