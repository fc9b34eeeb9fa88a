"""Canvases of volumes: how they are resampled, and how they are stored.

Storages are compared by bytes, crops of 96 voxels per second, and open files after a crop of every volume. Crops are
read from files that are in memory, and after the system was asked to forget them.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse

from benchmarks.turns import report, seconds_per_round
from medmoco.config import DataSettings
from medmoco.data.pack.pack_volumes import PackedPixels, blosc2, compressed
from medmoco.data.pack.shard_files import ShardFiles, shard_name
from medmoco.data.volume_io.canvases import resample, to_volume_canvas
from medmoco.data.volume_io.volume import Volume

Values = NDArray[Any]
SHAPE, VOLUMES, CROP, CROPS, ROUNDS = (200, 160, 120), 30, 96, 40, 5
RESAMPLED = ((512, 512, 100), (0.8, 0.8, 3.0), (1.5, 1.5, 1.5))  # voxels, spacing and new spacing
CT = Path(os.environ.get("MEDMOCO_SHARED", "../shared"), "data/volumes/example_ct.nii.gz")
WINDOW = (-600.0, 1500.0)
OURS = "medmoco's packs"


def run() -> None:
    """Print a table for each part."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    blosc2().set_nthreads(1)
    _resampling()
    _storage("made CT", [*_volumes()])
    if CT.is_file() and importlib.util.find_spec("nibabel"):
        _storage("a real CT of 3 mm", [_real()] * 2)


# Resampling


def _resampling() -> None:
    shape, old, new = RESAMPLED
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    sides = tuple(round(n * at / to) for n, at, to in zip(shape, old, new, strict=True))
    factors = [side / n for side, n in zip(sides, shape, strict=True)]
    ours = "OpenCV, area and linear (medmoco)"
    contestants: dict[str, Callable[[], object]] = {
        ours: lambda: resample(values, old, new, 10**9),
        "sparse matrices, area and linear": lambda: _by_matrices(values, sides),
        "scipy.ndimage.zoom, linear, aliases": lambda: ndimage.zoom(
            values, factors, order=1, grid_mode=True, mode="nearest"
        ),
        "PyTorch, trilinear, aliases": lambda: torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], size=sides, mode="trilinear"
        ),
    }
    times = seconds_per_round(contestants, ROUNDS)
    report(f"{shape} at {old} mm to {new} mm, one core", times, per_round=1, unit="volumes", reference=ours)


def _by_matrices(values: Values, sides: tuple[int, ...]) -> Values:
    for axis, side in enumerate(sides):
        unit = np.eye(values.shape[axis], dtype=np.float32)[..., None]
        weights, _ = resample(unit, (1.0, 1.0, 1.0), (values.shape[axis] / side, 1.0, 1.0), 10**9)
        first = np.moveaxis(values, axis, 0)
        mixed = sparse.csr_array(weights[..., 0]) @ np.ascontiguousarray(first).reshape(len(first), -1)
        values = np.moveaxis(mixed.reshape(side, *first.shape[1:]), 0, axis)
    return values


# Storage


class _Way(NamedTuple):
    write: Callable[[Path, Values], None]
    open: Callable[[Path, Values], Any]  # what three slices index


def _storage(title: str, volumes: list[Values]) -> None:
    """Write volumes in every way, and time crops at random places of random volumes."""
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Callable[[], object]] = {}
        print(f"\n{title}: {len(volumes)} volumes of {volumes[0].shape}\n{'':44}      bytes   open files")
        for name, way in _ways().items():
            paths = [Path(folder) / f"{len(contestants)}-{number}" for number in range(len(volumes))]
            for path, volume in zip(paths, volumes, strict=True):
                way.write(path, volume)
            size = sum(file.stat().st_size for path in paths for file in _files(path)) / sum(v.nbytes for v in volumes)
            before = len(os.listdir("/proc/self/fd"))
            opened = [way.open(path, volume) for path, volume in zip(paths, volumes, strict=True)]
            for volume in opened:
                np.asarray(volume[:9, :9, :9])
            print(f"{name:44} {size:10.3f} {len(os.listdir('/proc/self/fd')) - before:12}")
            contestants[f"{name}, in memory"] = partial(_crops, opened, volumes)
            contestants[f"{name}, forgotten"] = partial(_forgotten, way, paths, volumes)
        times = seconds_per_round(contestants, ROUNDS)
        report(f"{title}, one core", times, per_round=CROPS, unit="crops", reference=f"{OURS}, in memory")


def _places(volumes: list[Values]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    rng = np.random.default_rng(0)
    for _ in range(CROPS):
        which = int(rng.integers(len(volumes)))
        starts = [int(rng.integers(max(1, side - CROP + 1))) for side in volumes[which].shape]
        yield which, tuple(slice(start, start + CROP) for start in starts)


def _crops(opened: list[Any], volumes: list[Values]) -> None:
    for which, part in _places(volumes):
        np.ascontiguousarray(opened[which][part])


def _forgotten(way: _Way, paths: list[Path], volumes: list[Values]) -> None:
    for which, part in _places(volumes):
        for file in _files(paths[which]):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        np.ascontiguousarray(way.open(paths[which], volumes[which])[part])


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _ways() -> dict[str, _Way]:
    ways = {OURS: _Way(_write_pack, _open_pack), "memory-mapped .npy": _Way(_write_npy, _open_npy)}
    for codec in ("LZ4", "ZSTD"):
        ways[f"files of Blosc2, {codec}, chunks of 64"] = _Way(partial(_write_blosc2, codec), _open_blosc2)
    if importlib.util.find_spec("zarr"):
        ways["Zarr 3, zstd, chunks of 64 in a shard"] = _Way(_write_zarr, _open_zarr)
    return ways


def _write_pack(path: Path, volume: Values) -> None:
    path.mkdir()
    np.save(path / shard_name(0), compressed(volume))


def _open_pack(path: Path, volume: Values) -> Any:
    with (path / shard_name(0)).open("rb") as stream:
        np.lib.format.read_magic(stream)
        (length,), *_ = np.lib.format.read_array_header_1_0(stream)
    x, y, z = volume.shape
    return PackedPixels(ShardFiles(path), 0, 0, length, (x, y, z), volume.dtype.type)


def _write_npy(path: Path, volume: Values) -> None:
    with path.open("wb") as stream:
        np.save(stream, volume)


def _open_npy(path: Path, _: Values) -> Any:
    return np.load(path, mmap_mode="r")


def _write_blosc2(codec: str, path: Path, volume: Values) -> None:
    module = blosc2()
    filters = [module.Filter.BITSHUFFLE if codec == "LZ4" else module.Filter.NOFILTER]
    parameters = {"codec": module.Codec[codec], "clevel": 5 if codec == "LZ4" else 1, "filters": filters, "nthreads": 1}
    module.asarray(
        volume, chunks=(64,) * 3, blocks=(32,) * 3, cparams=parameters, urlpath=str(path), mode="w", contiguous=True
    )


def _open_blosc2(path: Path, _: Values) -> Any:
    return blosc2().open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def _write_zarr(path: Path, volume: Values) -> None:
    zarr: Any = importlib.import_module("zarr")
    shard = tuple(64 * -(-side // 64) for side in volume.shape)
    array = zarr.create_array(path, shape=volume.shape, dtype=volume.dtype, chunks=(64,) * 3, shards=shard)
    array[:] = volume


def _open_zarr(path: Path, _: Values) -> Any:
    zarr: Any = importlib.import_module("zarr")
    return zarr.open_array(path, mode="r")


# Volumes


def _volumes() -> Iterator[Values]:
    """Yield canvases of a body with lungs and vessels, and noise as after averaging."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    for _ in range(VOLUMES):
        tissue = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), 3)
        ct = np.where(x**2 / 0.9 + y**2 / 0.8 < 1, 40 + 400 * tissue, -1000)
        for side in (-0.45, 0.45):
            lung = (x - side) ** 2 / 0.13 + y**2 / 0.35 + z**2 < 1
            ct = np.where(lung, np.where(tissue > 0.05, 30, -850), ct)
        ct += ndimage.uniform_filter(rng.normal(0, 60, SHAPE), 2)
        yield _canvas(Volume(ct.astype(np.float32), np.eye(4)))


def _real() -> Values:
    nibabel: Any = importlib.import_module("nibabel")
    image = nibabel.load(CT)
    return _canvas(Volume(np.asarray(image.dataobj).astype(np.float32), image.affine))


def _canvas(volume: Volume) -> Values:
    data = DataSettings(manifest=Path(), root=".", dimensions=3, window=WINDOW)
    pixels: Values = to_volume_canvas(volume, data).pixels
    return pixels
