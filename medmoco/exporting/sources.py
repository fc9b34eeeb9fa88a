"""The context of a network to export: names that must not appear in it, training images, and its model card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, Tree, load_run, run_of
from medmoco.data.augment.views import channels_first, whole_view
from medmoco.data.augment.volume_views import whole_volumes
from medmoco.data.loading.loading import check_images, read_canvases, trained_rows
from medmoco.data.loading.preprocessing import NO_DATA
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import DataError, SettingsError
from medmoco.evaluation.features.encoder import Encoder
from medmoco.evaluation.supervised.classifier import Classifier, run_around
from medmoco.exporting import card
from medmoco.exporting.scan import Names, local_names, manifest_names
from medmoco.exporting.subject import Subject
from medmoco.segmentation.segmenter import Segmenter

Warn = Callable[[str], None]
Network: TypeAlias = Encoder | Classifier | Segmenter
"""What can be exported."""

_REAL_IMAGES, _REAL_VOLUMES = 4, 1  # a volume takes as long as a hundred images


@dataclass(frozen=True)
class Surroundings:
    """The context of a network.

    Attributes:
        names: Names that no file may contain.
        write_card: (preprocessing.json, parity.json) -> MODEL_CARD.md.
        views: A few training images (N, C, S, S) for the comparison; none if they cannot be read.
    """

    names: Names
    write_card: Callable[[Tree, Tree], str]
    views: list[NDArray[Any]] = field(default_factory=list)


def surroundings(network: Network, subject: Subject, warn: Warn) -> Surroundings:
    """Collect the context of a network; the manifest is read once.

    Args:
        network: Network to export.
        subject: The same network, as formats take it.
        warn: Receives a line if the manifest is unknown or cannot be read.

    Raises:
        CheckpointError: a record of the run is damaged.
    """
    settings = _settings_of(network, warn)
    splits = _read_splits(settings, warn) if settings else {}
    names = {**local_names(*_folders(network, settings)), **(manifest_names(splits.values()) if settings else {})}
    plain = partial(card.write_plain_card, subject)
    if settings is None or not isinstance(network, Encoder):
        return Surroundings(names, plain)
    train = _rows_trained_on(splits.get("train"), settings)
    views = _real_views(settings, network.preprocessing.size, train)
    source, run = network.provenance, run_of(network.folder) if network.folder else None
    if run is None or source.kind != "run":
        return Surroundings(names, plain, views)
    facts = card.gather(run, settings, source.step or 0, train, source.selected_by)
    return Surroundings(names, partial(card.write_card, facts), views)


def _settings_of(network: Network, warn: Warn) -> RunSettings | None:
    """Return the settings with the network's manifest; None if there are none."""
    settings, unknown = network.settings, "no settings name the encoder's manifest"
    if not isinstance(network, Encoder):
        what = "classifier" if isinstance(network, Classifier) else "segmentation network"
        run = run_around(network.folder) if network.folder else None
        settings, unknown = load_run(run) if run else settings, f"the {what} is not in a run folder"
    if settings is None or settings.data.manifest == NO_DATA:
        warn(f"{unknown}, so the export is not searched for its Paths and IDs")
        return None
    return settings


def _read_splits(settings: RunSettings, warn: Warn) -> dict[str, Split]:
    data = settings.data
    try:
        return load_manifest(data, present_splits(data), patients_matter=False)
    except (DataError, SettingsError):
        warn("the manifest cannot be read, so the export is not searched for its Paths and IDs")
        return {}


def _folders(network: Network, settings: RunSettings | None) -> list[Path]:
    """Return the folders whose names must not appear in the export."""
    own = [network.folder] if network.folder else []
    if settings is None:
        return own
    data = settings.data
    given = (settings.out, data.manifest, data.root, data.pack, settings.model.init)
    return [*own, *(Path(str(path).partition("{")[0]) for path in given if path is not None)]


def _rows_trained_on(train: Split | None, settings: RunSettings) -> Split | None:
    """Return the rows that were trained on; None if the data are not on this machine."""
    try:
        return train and trained_rows(train, settings.data)
    except DataError:
        return None


def _real_views(settings: RunSettings, size: int, train: Split | None) -> list[NDArray[Any]]:
    if train is None:
        return []
    is_volume = settings.data.dimensions == 3
    few = train.select(train.spread(_REAL_VOLUMES if is_volume else _REAL_IMAGES))
    try:
        check_images(few, settings.data)
        canvases, _ = read_canvases(few, np.arange(len(few)), settings)
    except (DataError, SettingsError):  # SettingsError if the pack is missing
        return []
    if is_volume:
        views = whole_volumes(cast(list[VolumeCanvas], canvases), np.arange(len(few)), size=size, way="resized")
        return [np.asarray(views)]
    return [channels_first([whole_view(canvas, size) for canvas in canvases])]
