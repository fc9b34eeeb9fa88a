"""Check that an exported file reproduces the network's outputs: load it in a new process and compare."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from medmoco.config import Tree
from medmoco.errors import CheckpointError
from medmoco.exporting import reload

STATE_TOLERANCE = 1e-5
"""Largest difference as a share of the largest output, for weights that are loaded into a PyTorch network.
Source: the same operations in the same order agree exactly on one machine, and to about 1e-6 on another processor,
which sums in another order."""

GRAPH_TOLERANCE = 1e-4
"""The same for other runtimes, which fuse and reorder operations."""

CASES = "parity.safetensors"
"""Synthetic images, normalised, and the outputs expected for them, by name."""

SUMS = "SHA256SUMS"
"""Hashes of every other file, for `sha256sum -c`."""

TOLERANCES = {"onnx": GRAPH_TOLERANCE, "program": GRAPH_TOLERANCE}
SYNTHETIC_IMAGES, SYNTHETIC_VOLUMES = 4, 2

Floats = NDArray[np.float32]


class NotInstalledError(Exception):
    """The format's library is not installed; the message is its name."""


def synthetic_views(
    size: int, bit_depth: int, count: int = SYNTHETIC_IMAGES, channels: int = 1, dimensions: int = 2
) -> NDArray[Any]:
    """Make images or volumes of smooth blobs and noise from a fixed seed.

    Returns:
        (count, channels, size, size) uint8 or uint16; of volumes, (count, channels, size, size, size).
    """
    generator = np.random.default_rng(0)
    if dimensions == 3:
        rough = generator.random((count * channels, 6, 6, 6), np.float32)
        return _levels(np.stack([_enlarged(blob, size) for blob in rough]), generator, bit_depth, channels)
    blobs = generator.random((count * channels, 6, 6), np.float32)
    soft = np.stack([cv2.resize(blob, (size, size), interpolation=cv2.INTER_LINEAR) for blob in blobs])
    return _levels(soft, generator, bit_depth, channels)


def _enlarged(blob: Floats, size: int) -> Floats:
    """Return a volume (6, 6, 6) as (size, size, size), enlarged linearly: slice by slice, then along the first axis."""
    slices = np.stack([cv2.resize(part, (size, size)) for part in blob])
    enlarged: Floats = np.asarray(cv2.resize(slices.reshape(len(blob), -1), (size * size, size)), np.float32)
    return enlarged.reshape(size, size, size)


def _levels(soft: Floats, generator: np.random.Generator, bit_depth: int, channels: int) -> NDArray[Any]:
    shares = np.clip(soft + 0.03 * generator.standard_normal(soft.shape), 0, 1)
    levels: NDArray[Any] = np.rint(shares.reshape(-1, channels, *soft.shape[1:]) * (2**bit_depth - 1))
    return levels.astype(np.uint8) if bit_depth == 8 else levels.astype(np.uint16)


def save_cases(file: Path, images: Floats, expected: Mapping[str, Floats]) -> None:
    """Write images and the outputs expected for them."""
    arrays = {"images": images, **expected}
    file.write_bytes(save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))


def load_cases(file: Path) -> tuple[Floats, dict[str, Floats]]:
    """Read images and the outputs expected for them."""
    arrays = load(file.read_bytes())
    return arrays.pop("images"), arrays


def compare(name: str, folder: Path, images: Floats, expected: Mapping[str, Floats]) -> Tree:
    """Compare a format's outputs with those expected.

    Args:
        name: Name of the format.
        folder: Folder of the export.
        images: (N, C, S, S), or (N, C, S, S, S) of volumes; normalised.
        expected: Outputs by name, (N, F) or (N, L).

    Returns:
        The record for parity.json.

    Raises:
        CheckpointError: the format cannot be loaded, gives other outputs, or needs other libraries.
        NotInstalledError: its library is not installed.
    """
    contract = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    path = contract["formats"][name]["path"]
    found, libraries = _in_new_process(name, folder / path, folder / "preprocessing.json", images)
    foreign = {"medmoco", "torch"} if name == "onnx" else {"medmoco"}
    if foreign & libraries.keys():
        raise CheckpointError(f"{path} was loaded with {', '.join(foreign & libraries.keys())}, which it must not need")
    tolerance = TOLERANCES.get(name, STATE_TOLERANCE)
    differences = {key: _difference(values, expected, key, path) for key, values in found.items()}
    exact = {key: value for key, value in differences.items() if key.startswith("float32/")}
    absolute, relative = (max(pair[place] for pair in exact.values()) for place in (0, 1))
    if not relative <= tolerance:  # also when it is not a number
        raise CheckpointError(
            f"{path} gives other outputs than the network: they differ by {relative:.2g} of the largest output,\n"
            f"more than the tolerance of {tolerance:g}"
        )
    return {
        "format": name,
        "path": path,
        "libraries": libraries,
        "outputs": sorted(key.partition("/")[2] for key in exact),
        "tolerance": tolerance,
        "max_absolute_difference": absolute,
        "max_relative_difference": relative,
        "half_precision": _half(differences, contract["formats"][name]["precisions"]),
    }


def _difference(found: Floats, expected: Mapping[str, Floats], key: str, path: str) -> tuple[float, float]:
    """Return the largest difference, and as a share of the largest expected output."""
    precision, _, output = key.partition("/")
    target = expected[output] if precision == "float32" else expected[output][: reload.HALF_IMAGES]
    if found.shape != target.shape:
        raise CheckpointError(f"{path} gives {key} of shape {found.shape}, not {target.shape}")
    absolute, largest = float(np.abs(found - target).max()), float(np.abs(target).max())
    return absolute, absolute / largest if largest else absolute


def _half(differences: Mapping[str, tuple[float, float]], precisions: Sequence[str]) -> dict[str, float | str]:
    """Return the relative difference for each half precision, which has no tolerance, or why there is none."""
    half: dict[str, float | str] = {}
    for precision in precisions:
        own = [relative for key, (_, relative) in differences.items() if key.startswith(f"{precision}/")]
        if precision != "float32":
            half[precision] = "not supported" if not own else max(own) if np.isfinite(own).all() else "not finite"
    return half


def _in_new_process(name: str, path: Path, contract: Path, images: Floats) -> tuple[dict[str, Floats], dict[str, str]]:
    """Return the outputs by "precision/name", and the versions of the libraries that the process imported."""
    stream = io.BytesIO()
    np.save(stream, images)
    # -P: modules in this folder or the working folder must not be imported.
    command = [sys.executable, "-P", reload.__file__, name, str(path), str(contract)]
    done = subprocess.run(command, input=stream.getvalue(), capture_output=True, check=False)  # noqa: S603 - our script
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == reload.ABSENT and lines:
        raise NotInstalledError(lines[-1])
    if done.returncode != 0:
        reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
        raise CheckpointError(f"{path.name} cannot be loaded in a new process\n{reason}")
    with np.load(io.BytesIO(done.stdout)) as arrays:
        outputs = {key: arrays[key] for key in arrays.files if key != "libraries"}
        return outputs, json.loads(str(arrays["libraries"]))
