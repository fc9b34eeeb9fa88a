"""Inputs and outputs that evaluation and inspection share: splits, rows, labels, the device, files of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from medmoco.utils.files import replacing


def load_splits(settings: RunSettings, names: Sequence[str], *, patients_matter: bool = True) -> dict[str, Split]:
    """Load splits together, so that their patient codes agree, filtered by `evaluate.where`; see `load_manifest`.

    Raises:
        ManifestError: the manifest cannot be used, or the filter leaves no row of a split.
        SettingsError, DataError: an image or the pack is missing.
    """
    splits = load_manifest(settings.data, tuple(dict.fromkeys(names)), patients_matter=patients_matter)
    if settings.evaluate.where:
        splits = {name: select_where(split, settings.evaluate.where) for name, split in splits.items()}
    return {name: check_images(split, settings.data) for name, split in splits.items()}


def load_unlabelled(settings: RunSettings, name: str) -> Split:
    """Load a split without its labels, which may be missing; raises as `load_splits`."""
    data = settings.data.model_copy(update={"labels": {}})
    return load_splits(settings.model_copy(update={"data": data}), [name], patients_matter=False)[name]


def find_rows(split: Split, rows: Sequence[int]) -> NDArray[np.int64]:
    """Return the positions in a split of row numbers, counted as in a spreadsheet, in the order given.

    Raises:
        ManifestError: the split does not have a row.
    """
    position = {row: index for index, row in enumerate(split.rows.tolist())}
    absent = [row for row in dict.fromkeys(rows) if row not in position]
    if absent:
        named = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        raise ManifestError(
            f"{split.csv.name}: {split.name} has no row {named}; its {len(split)} rows lie between "
            f"{split.rows.min()} and {split.rows.max()}\n"
            "Rows are counted as in a spreadsheet: the header is row 1.\n"
            "Rows that evaluate.where or the pack leaves out are not available."
        )
    return np.array([position[row] for row in dict.fromkeys(rows)], np.int64)


def find_label(label: str | None, labels: Sequence[str]) -> str | None:
    """Return the requested label, by default the first; None if there are no labels.

    Raises:
        SettingsError: `label` is not one of `labels`.
    """
    if label is None:
        return next(iter(labels), None)
    if label not in labels:
        raise SettingsError(f"there is no label {label!r}; known: {', '.join(labels) or 'none, set data.labels'}")
    return label


def on_device(module: nn.Module, settings: RunSettings) -> torch.device:
    """Move a module to the device of the settings, and return the device.

    Raises:
        SettingsError: the settings require a GPU and none is available.
    """
    device = choose_device(settings.train)
    module.to(device)
    if settings.train.channels_last:
        module.to(memory_format=torch.channels_last)
    return device


def features_of(split: Split, encoder: nn.Module, settings: RunSettings) -> Features:
    """Return the features of every row, (N, F); raises as `extract` and `on_device`."""
    return extract({"encoder": encoder}, split, settings, on_device(encoder, settings)).features["encoder"]


def make_folder(folder: Path) -> None:
    """Create a folder for results.

    Raises:
        SettingsError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be the folder of the results: {error.strerror}") from None


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces a file of results once the block has written it.

    Raises:
        SettingsError: the file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            yield temporary
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror or error}") from None
