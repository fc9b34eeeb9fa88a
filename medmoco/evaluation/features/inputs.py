"""What someone asked to look at: splits as `evaluate` restricts them, rows of them, labels, a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import RunSettings
from medmoco.data.loading.loading import check_images
from medmoco.data.manifest.manifest import Split, load_manifest, select_where
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.features import Features, extract
from medmoco.training.device import choose_device


def load_splits(settings: RunSettings, names: Sequence[str], *, patients_matter: bool = True) -> dict[str, Split]:
    """Load splits together, so that their patients' codes agree, restricted by `evaluate.where`; see `load_manifest`.

    Raises:
        ManifestError: the manifest cannot be used, or no row of a split is left.
        SettingsError, DataError: an image or the pack is not there.
    """
    splits = load_manifest(settings.data, tuple(dict.fromkeys(names)), patients_matter=patients_matter)
    if settings.evaluate.where:
        splits = {name: select_where(split, settings.evaluate.where) for name, split in splits.items()}
    return {name: check_images(split, settings.data) for name, split in splits.items()}


def find_rows(split: Split, rows: Sequence[int]) -> NDArray[np.int64]:
    """Return the positions in a split of rows as a spreadsheet counts them, in the order asked for.

    Raises:
        ManifestError: a row is not among them.
    """
    position = {row: place for place, row in enumerate(split.rows.tolist())}
    absent = [row for row in dict.fromkeys(rows) if row not in position]
    if absent:
        named = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        raise ManifestError(
            f"{split.csv.name}: {split.name} has no row {named}; its {len(split)} rows lie between "
            f"{split.rows.min()} and {split.rows.max()}\n"
            "Rows are counted as a spreadsheet shows them: the header is row 1.\n"
            "What evaluate.where or the pack leaves out cannot be asked for."
        )
    return np.array([position[row] for row in dict.fromkeys(rows)], np.int64)


def find_label(label: str | None, labels: Sequence[str]) -> str | None:
    """Return the label asked for; without one the first, None where there is none.

    Raises:
        SettingsError: `label` is none of `labels`.
    """
    if label is None:
        return next(iter(labels), None)
    if label not in labels:
        raise SettingsError(f"there is no label {label!r}; known: {', '.join(labels) or 'none, set data.labels'}")
    return label


def on_device(module: nn.Module, settings: RunSettings) -> torch.device:
    """Move a module to where the settings want it; return where that is.

    Raises:
        SettingsError: a GPU is asked for and none is usable.
    """
    device = choose_device(settings.train)
    module.to(device)
    if settings.train.channels_last:
        module.to(memory_format=torch.channels_last)
    return device


def features_of(split: Split, encoder: nn.Module, settings: RunSettings) -> Features:
    """Return the features (N, F) of every row.

    Raises:
        CheckpointError: they are not finite.
        SettingsError, DataError: the GPU, or an image, cannot be used.
    """
    device = on_device(encoder, settings)
    return extract({"encoder": encoder}, split, settings, device).features["encoder"]


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        SettingsError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be the folder of the results: {error.strerror}") from None
