"""Where an export comes from: a run, a weights file or a classifier folder, with what is known beside the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, load
from medmoco.data.augment.views import channels_first, whole_view
from medmoco.data.loading.loading import check_images, read_canvases, trained_rows
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.errors import DataError, SettingsError
from medmoco.exporting import card, subject
from medmoco.exporting.scan import Names, local_names, manifest_names
from medmoco.exporting.subject import Subject
from medmoco.training.checkpoint import load_run

Record = dict[str, Any]
Warn = Callable[[str], None]

_REAL_IMAGES = 4


@dataclass(frozen=True)
class Source:
    """What is exported and what is known beside it.

    Attributes:
        subject: The network.
        write_card: (preprocessing.json, parity.json) -> MODEL_CARD.md.
        names: That must not be in any file.
        views: A few training images as (N, C, S, S), to compare on; none where they cannot be read.
    """

    subject: Subject
    write_card: Callable[[Record, Record], str]
    names: Names
    views: list[NDArray[Any]] = field(default_factory=list)


def from_run(run: Path, licence: str, warn: Warn) -> Source:
    """Return a run's encoder.

    Args:
        run: Run folder.
        licence: Of the weights.
        warn: Told of damaged checkpoints that are passed over, and of a manifest that cannot be read.

    Raises:
        CheckpointError: the run cannot be read.
    """
    settings = load_run(run)
    network = replace(subject.from_encoder(str(run), settings, warn), licence=licence)
    train = _training_split(settings)
    facts = card.gather(run, settings, network.source["step"], train)
    return Source(
        network,
        lambda contract, parity: card.write_card(facts, contract, parity),
        _names(settings, run, warn),
        _real_views(settings, network.preparation.size, train),
    )


def from_file(file: Path, settings: RunSettings, licence: str, warn: Warn) -> Source:
    """Return the encoder of a weights file.

    Args:
        file: As `model.init` takes it.
        settings: That it is used with.
        licence: Of the weights.
        warn: Told of a manifest that cannot be read.

    Raises:
        CheckpointError: it cannot be read.
    """
    network = replace(subject.from_encoder(str(file), settings, warn), licence=licence)
    train = _training_split(settings)
    return Source(
        network,
        lambda contract, parity: card.write_plain_card(network, contract, parity),
        _names(settings, file.parent, warn),
        _real_views(settings, network.preparation.size, train),
    )


def from_classifier(folder: Path, licence: str, warn: Warn) -> Source:
    """Return the classifier of a folder; the run that it lies in says whose names must not leave.

    Args:
        folder: As `evaluate` and `finetune` leave it.
        licence: Of the weights.
        warn: Told of a manifest that cannot be read.

    Raises:
        CheckpointError: it cannot be read.
    """
    network = replace(subject.from_classifier(folder), licence=licence)
    run = next((parent for parent in folder.absolute().parents[:2] if (parent / "config.yaml").is_file()), None)
    return Source(
        network,
        lambda contract, parity: card.write_plain_card(network, contract, parity),
        _names(load(run / "config.yaml") if run else None, folder, warn),
    )


def _names(settings: RunSettings | None, folder: Path, warn: Warn) -> Names:
    if settings is None:
        warn("no run folder is around the classifier, so its manifest's Paths and ids are not looked for in the export")
        return local_names(folder)
    data = settings.data
    given = (settings.out, data.manifest, data.root, data.pack, settings.model.init)
    folders = [Path(str(path).partition("{")[0]) for path in given if path is not None]
    try:
        splits = load_manifest(data, present_splits(data), patients_matter=False).values()
    except DataError:
        warn("the manifest cannot be read, so its Paths and ids are not looked for in the export")
        splits = {}.values()
    return {**local_names(folder, *folders), **manifest_names(splits)}


def _training_split(settings: RunSettings) -> Split | None:
    """Return the training split; the data need not be where the export is made."""
    try:
        return trained_rows(load_manifest(settings.data, ("train",), patients_matter=False)["train"], settings.data)
    except DataError:
        return None


def _real_views(settings: RunSettings, size: int, train: Split | None) -> list[NDArray[Any]]:
    if train is None:
        return []
    few = train.select(np.unique(np.linspace(0, len(train) - 1, _REAL_IMAGES).astype(np.int64)))
    try:
        check_images(few, settings.data)
        canvases, _ = read_canvases(few, np.arange(len(few)), settings)
    except (DataError, SettingsError):  # the latter of a pack that is gone
        return []
    return [channels_first([whole_view(canvas, size) for canvas in canvases])]
