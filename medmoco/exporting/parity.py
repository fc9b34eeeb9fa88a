"""Prove that an exported file gives the run's features: load it in a new process and compare."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.errors import CheckpointError
from medmoco.exporting import reload

TOLERANCE = 1e-4
"""Largest difference as a share of the largest feature. Source: float32 on other kernels differs by some 1e-6 of it."""

_SYNTHETIC = 4

Floats = NDArray[np.float32]


def synthetic_views(size: int, bit_depth: int, count: int = _SYNTHETIC) -> NDArray[Any]:
    """Make seeded pictures of soft blobs and noise.

    Returns:
        (count, 1, size, size) uint8 or uint16.
    """
    generator = np.random.default_rng(0)
    blobs = generator.random((count, 6, 6), np.float32)
    soft = np.stack([cv2.resize(blob, (size, size), interpolation=cv2.INTER_LINEAR) for blob in blobs])
    shares = np.clip(soft + 0.03 * generator.standard_normal(soft.shape), 0, 1)
    levels: NDArray[Any] = np.rint(shares[:, None] * (2**bit_depth - 1))
    return levels.astype(np.uint8) if bit_depth == 8 else levels.astype(np.uint16)


def compare(file: Path, contract: Path, images: Floats, expected: Floats) -> dict[str, Any]:
    """Compare a file's features with the run's.

    Args:
        file: encoder.safetensors or encoder.onnx.
        contract: preprocessing.json.
        images: (N, 1, S, S), normalised.
        expected: (N, F), features of the run.

    Returns:
        The record for parity.json.

    Raises:
        CheckpointError: the file cannot be loaded or gives other features.
    """
    features = _in_new_process(file, contract, images)
    if features.shape != expected.shape:
        shapes = f"{features.shape}, the run {expected.shape}"
        raise CheckpointError(f"{file.name} gives features of shape {shapes}; nothing was exported")
    absolute = float(np.abs(features - expected).max())
    largest = float(np.abs(expected).max())
    relative = absolute / largest if largest else absolute
    if not relative <= TOLERANCE:  # also when it is not a number
        raise CheckpointError(
            f"{file.name} gives other features than the run: they differ by {relative:.2g} of the largest feature,\n"
            f"more than the tolerance of {TOLERANCE:g}. Nothing was exported; please report this with the backbone."
        )
    return {"file": file.name, "max_absolute_difference": absolute, "max_relative_difference": relative}


def _in_new_process(file: Path, contract: Path, images: Floats) -> Floats:
    stream = io.BytesIO()
    np.save(stream, images)
    # -P: neither this folder nor the caller's may lend the script a module.
    command = [sys.executable, "-P", reload.__file__, str(file), str(contract)]
    done = subprocess.run(command, input=stream.getvalue(), capture_output=True, check=False)  # noqa: S603 - our script
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
        raise CheckpointError(f"{file.name} cannot be loaded back in a new process; nothing was exported\n{reason}")
    features: Floats = np.load(io.BytesIO(done.stdout))
    return features
