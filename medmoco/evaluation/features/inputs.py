"""Inputs and outputs that evaluation and inspection share: splits, rows, labels, the device, features, result files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import DataSettings, RunSettings, is_run
from medmoco.data.loading.loading import check_images
from medmoco.data.manifest.manifest import Split, load_manifest, select_where
from medmoco.data.pack.pack import open_pack, recipe_of
from medmoco.data.pack.pack_cache import local_folder
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.features import Extracted, extract, fingerprint
from medmoco.training.device import choose_device
from medmoco.utils.array_cache import ArrayCache, Arrays
from medmoco.utils.files import replacing, sha256_of
from medmoco.utils.progress import track

FEATURES = "features"
"""Subfolder with the features that earlier commands computed."""

_LIBRARIES = ("medmoco", "torch", "timm", "numpy", "cv2", "PIL", "pydicom")  # can change features in the last bits
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


def feature_cache(encoder: str, out: Path | None, log: Callable[[str], None]) -> ArrayCache | None:
    """Return where the features of an encoder are kept: in its run folder, or in `out` if it is not a run."""
    run = Path(encoder)
    folder = run if is_run(run) else out
    return ArrayCache(folder / FEATURES, log) if folder else None


def features_of(
    encoders: Mapping[str, nn.Module],
    split: Split,
    settings: RunSettings,
    cache: ArrayCache | None,
    log: Callable[[str], None],
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

    Raises:
        SettingsError, CheckpointError, DataError: as `extract` and `on_device`.
    """
    (device,) = {on_device(module, settings) for module in encoders.values()}
    images = _hash_of_images(split, settings.data) if cache else None
    if cache is None or images is None:
        log(f"features of {split.name}: {len(split)} images")
        return extract(encoders, split, settings, device)
    keys = {name: _key(module, images, settings, device) for name, module in encoders.items()}
    kept = {name: _unpack(name, cache.get(key), len(split)) for name, key in keys.items()}
    missing = {name: module for name, module in encoders.items() if kept[name] is None}
    log(f"features of {split.name}: {len(split)} images" + ("" if missing else f", kept in {cache.folder}"))
    found = [one for one in kept.values() if one]
    if missing:
        found.append(extract(missing, split, settings, device))
        for name in missing:
            cache.put(keys[name], _pack(name, found[-1]))
    features = {name: values for one in found for name, values in one.features.items()}
    return Extracted({name: features[name] for name in encoders}, found[-1].notices, found[-1].digests)


def _hash_of_images(split: Split, data: DataSettings) -> str | None:
    """Return a hash of the content of a split's images, in order; None if a file cannot be read.

    Row numbers are included, since notices contain them.
    """
    if data.pack:
        pack = open_pack(local_folder(data), data)
        content: list[Any] = [pack.info["files"], pack.find(split, data).tolist()]
    else:
        files = list(dict.fromkeys(split.files))
        try:
            with ThreadPoolExecutor(_HASH_THREADS) as pool:
                hashes = dict(zip(files, track(pool.map(sha256_of, files), len(files), "hashing files"), strict=True))
        except OSError:
            return None
        content = [[hashes[file] for file in split.files], split.frames.tolist(), split.names_frames]
    return hashlib.sha256(json.dumps([content, split.csv.name, split.rows.tolist()]).encode()).hexdigest()


def _key(module: nn.Module, images: str, settings: RunSettings, device: torch.device) -> str:
    """Return a hash of everything that the features of images depend on."""
    views = settings.views
    machine = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    parts = [
        {name: import_module(name).__version__ for name in _LIBRARIES},
        [machine, torch.get_num_threads(), settings.train.channels_last, settings.evaluate.batch_size],
        [recipe_of(settings.data), settings.evaluate.size or views.size, views.mean, views.std],
        [repr(module), fingerprint(module), images],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pack(name: str, found: Extracted) -> Arrays:
    """Return the features of one encoder as arrays; a constant image has no digest, here zeros."""
    digests = b"".join(digest or bytes(32) for digest in found.digests)
    return {
        "features": found.features[name],
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, 32),
        "notices": np.array(found.notices, np.str_),
    }


def _unpack(name: str, arrays: Arrays | None, count: int) -> Extracted | None:
    """Return the kept features of one encoder; None if there are none, or not for this number of images."""
    if not arrays or not {"features", "digests", "notices"} <= arrays.keys():
        return None
    features, digests, notices = (arrays[part] for part in ("features", "digests", "notices"))
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != count or digests.shape != (count, 32):
        return None
    rows = tuple(digest.tobytes() if digest.any() else b"" for digest in digests)
    return Extracted({name: features}, tuple(notices.astype(str).tolist()), rows)


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
