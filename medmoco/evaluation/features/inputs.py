"""What evaluation and inspection share: splits, rows, labels and targets, the device, features, result files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import DataSettings, RunSettings, run_of
from medmoco.data.augment.normalisation import memory_layout
from medmoco.data.loading.loading import check_images
from medmoco.data.manifest.columns import IDENTIFYING
from medmoco.data.manifest.manifest import Split, load_manifest, select_where
from medmoco.data.manifest.row_filter import decimal_comma, did_you_mean, number_in
from medmoco.data.pack.pack import open_pack, recipe_of, series_of
from medmoco.data.pack.pack_cache import local_folder
from medmoco.data.pack.pack_sources import size_and_hash
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.features import (
    Extracted,
    digests_from_array,
    digests_to_array,
    extract,
    fingerprint,
)
from medmoco.evaluation.metrics.subgroups import years_in
from medmoco.training.device import choose_device
from medmoco.utils.array_cache import ArrayCache, Arrays
from medmoco.utils.files import replacing, sha256_of
from medmoco.utils.progress import track

FEATURES = "features"
"""Subfolder with the features that earlier commands computed."""

_LIBRARIES = ("medmoco", "torch", "timm", "numpy", "cv2", "PIL", "pydicom", "openjpeg")  # can change the last bits
_HASH_THREADS = 8


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


def class_names(train: Split, column: str, setting: str) -> tuple[str, ...]:
    """Return the classes that a text column of train names, sorted; blank cells name none.

    Args:
        train: Rows of train.
        column: Column with the class of each image.
        setting: Setting that names the column, for errors.

    Raises:
        SettingsError: the column is missing, or identifies patients or images.
        ManifestError: it names fewer than two classes.
    """
    names = tuple(sorted(set(_cells(train, column, setting)) - {""}))
    if len(names) < 2:
        raise ManifestError(f"{train.csv.name}: the column '{column}' names {len(names)} classes; 2 or more are needed")
    return names


def class_codes(split: Split, column: str, names: tuple[str, ...], setting: str) -> NDArray[np.int64]:
    """Return the class number of each row, (N,); -1 for blank cells. Arguments are those of `class_names`.

    Raises:
        ManifestError: a row has a class that is not in `names`, which are those of train.
    """
    cells = _cells(split, column, setting)
    known: Mapping[str, int] = {"": -1, **{name: number for number, name in enumerate(names)}}
    unknown = ~cells.isin(known).to_numpy()
    if unknown.any():
        raise ManifestError(
            f"{split.csv.name} row {split.rows[unknown.argmax()]}: train has no rows of its class in '{column}'"
            f" ({unknown.sum()} such rows in all);\nadd such rows to train, or leave their cells blank"
        )
    return np.array([known[cell] for cell in cells], np.int64)


def with_classes(splits: Mapping[str, Split], column: str) -> dict[str, Split]:
    """Return the splits with a label for each class of train: 1 for the rows of the class, 0 for those of others.

    Raises:
        SettingsError, ManifestError: as `class_names` and `class_codes`.
    """
    names = class_names(splits["train"], column, "evaluate.classes")
    found = {}
    for name, split in splits.items():
        codes = class_codes(split, column, names, "evaluate.classes")[:, None]
        labels = np.where(codes < 0, np.nan, codes == np.arange(len(names))).astype(np.float32)
        found[name] = replace(split, label_names=names, labels=labels, raw_labels=labels)
    return found


def read_values(split: Split, column: str) -> NDArray[np.float64]:
    """Return the numbers in a column (N,), nan for blank cells; those of `Age` may be DICOM ages, in years.

    Raises:
        SettingsError: the column is missing, or identifies patients or images.
        ManifestError: a cell is not a number.
    """
    cells = _cells(split, column, "evaluate.targets")
    known = {cell: years_in(cell) if column == "Age" else _number_in(cell) for cell in cells.unique()}
    wrong = np.array([bool(cell) and math.isnan(known[cell]) for cell in cells], bool)
    if wrong.any():
        first = int(wrong.argmax())
        remedy = "a number of years, or a DICOM age such as 034Y" if column == "Age" else "a number without its unit"
        raise ManifestError(
            f"{split.csv.name} row {split.rows[first]}: the target '{column}' is {cells.iloc[first]!r}, which is not a"
            f" number ({wrong.sum()} such rows in all){decimal_comma(cells.iloc[first])};\n"
            f"write {remedy}, or leave the cell blank"
        )
    return np.array([known[cell] for cell in cells], np.float64)


def _number_in(cell: str) -> float:
    """Return the number in a cell; nan if it is not one, or not finite."""
    value = number_in(cell)
    return math.nan if value is None or math.isinf(value) else value


def _cells(split: Split, column: str, setting: str) -> pd.Series[str]:
    """Return the text of a column."""
    if column not in split.table.columns:
        guess = did_you_mean(column, list(split.table.columns))
        raise SettingsError(f"{setting}: {split.csv.name} has no column '{column}'{guess}")
    if column in IDENTIFYING:
        raise SettingsError(f"{setting}: '{column}' identifies patients or images; name another column")
    return split.table[column].astype(str).str.strip()


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
        module.to(memory_format=memory_layout(settings.data.dimensions, channels_last=True))
    return device


def feature_cache(encoder: str, out: Path | None, log: Callable[[str], None]) -> ArrayCache | None:
    """Return where the features of an encoder are kept: in its run folder, or in `out` if it is not a run."""
    folder = run_of(Path(encoder)) or out
    return ArrayCache(folder / FEATURES, log) if folder else None


def features_of(
    encoders: Mapping[str, nn.Module],
    split: Split,
    settings: RunSettings,
    cache: ArrayCache | None,
    log: Callable[[str], None],
    images: str | None = None,
) -> Extracted:
    """Return the features of every row, computed only for the encoders whose features of these images are not kept.

    What is kept is found by hashes of the weights, the network, the files and all settings that features depend on. It
    is bitwise what would be computed again, and contains neither paths nor ids.

    Args:
        encoders: Modules (B, C, S, S) -> (B, F) by name; they are moved to the device.
        split: N rows.
        settings: As of `extract`.
        cache: Features of earlier commands; None computes all of them and keeps none.
        log: Receives a line with the number of images.
        images: `hash_of_images` of the split, if it is known already.

    Raises:
        SettingsError, CheckpointError, DataError: as `extract` and `on_device`.
    """
    (device,) = {on_device(module, settings) for module in encoders.values()}
    images = images or (hash_of_images(split, settings.data) if cache else None)
    if cache is None or images is None:
        log(f"features of {split.name}: {len(split)} {settings.data.noun}")
        return extract(encoders, split, settings, device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    computed_by = [machine, torch.get_num_threads()]
    keys = {name: key_of_features(module, images, settings, computed_by) for name, module in encoders.items()}
    kept = {name: _unpack(name, cache.get(key), len(split)) for name, key in keys.items()}
    missing = {name: module for name, module in encoders.items() if kept[name] is None}
    where = "" if missing else f", kept in {cache.folder}"
    log(f"features of {split.name}: {len(split)} {settings.data.noun}{where}")
    found = [one for one in kept.values() if one]
    if missing:
        found.append(extract(missing, split, settings, device))
        for name in missing:
            cache.put(keys[name], _pack(name, found[-1]))
    features = {name: values for one in found for name, values in one.features.items()}
    return Extracted({name: features[name] for name in encoders}, found[-1].notices, found[-1].digests)


def hash_of_images(split: Split, data: DataSettings) -> str | None:
    """Return a hash of the content of a split's images, in order; None if a file cannot be read.

    Row numbers are included, since notices contain them.
    """
    if data.pack:
        pack = open_pack(local_folder(data), data)
        content: list[Any] = [pack.info["files"], pack.find(split, data).tolist()]
    else:
        sources = list(zip(split.files.tolist(), series_of(split, data), strict=True))
        distinct = list(dict.fromkeys(sources))
        try:
            with ThreadPoolExecutor(_HASH_THREADS) as pool:
                found = track(pool.map(_hash_of_source, distinct), len(distinct), "hashing files")
                hashes = dict(zip(distinct, found, strict=True))
        except OSError:
            return None
        content = [[hashes[source] for source in sources], split.frames.tolist(), split.names_frames]
    return hashlib.sha256(json.dumps([content, split.csv.name, split.rows.tolist()]).encode()).hexdigest()


def _hash_of_source(source: tuple[str, str]) -> str:
    """Return the SHA-256 of a file, or of the files of a DICOM series in a folder."""
    path, series = source
    return size_and_hash(path, series)[1] if os.path.isdir(path) else sha256_of(path)


def key_of_features(module: nn.Module, images: str, settings: RunSettings, computed_by: Sequence[object]) -> str:
    """Return a hash of everything that features depend on: images, of which a hash is given, network and machine."""
    views = settings.views
    shown = [settings.evaluate.volumes] if settings.data.dimensions == 3 else []
    parts = [
        {name: import_module(name).__version__ for name in _LIBRARIES},
        [*computed_by, settings.train.channels_last, settings.evaluate.batch_size],
        [recipe_of(settings.data), settings.evaluate.size or views.size, views.mean, views.std, *shown],
        [repr(module), fingerprint(module), images],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pack(name: str, found: Extracted) -> Arrays:
    """Return the features of one encoder as arrays."""
    return {
        "features": found.features[name],
        "digests": digests_to_array(found.digests),
        "notices": np.array(found.notices, np.str_),
    }


def _unpack(name: str, arrays: Arrays | None, count: int) -> Extracted | None:
    """Return the kept features of one encoder; None if there are none, or not for this number of images."""
    if not arrays or not {"features", "digests", "notices"} <= arrays.keys():
        return None
    features, digests, notices = (arrays[part] for part in ("features", "digests", "notices"))
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != count or digests.shape != (count, 32):
        return None
    return Extracted({name: features}, tuple(notices.astype(str).tolist()), digests_from_array(digests))


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
