"""MedMNIST: from its .npz file to PNG files and a manifest with the official split."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError, SettingsError
from medmoco.utils.tables import inflation_limit

ABOUT = About(name="MedMNIST", url="https://medmnist.com", licence="CC BY 4.0, DermaMNIST CC BY-NC 4.0")


def prepare(source: Source) -> Prepared:
    """Write OUT/images/{train,val,test}/NNNNNN.png and return their labels."""
    parts = []
    for split in ("train", "val", "test"):
        images, labels = _load(source.folder, split)
        parts.append((split, _write(images, source.out, split), labels.reshape(len(labels), -1)))
    values = np.concatenate([labels for _, _, labels in parts])
    if values.shape[1] == 1:  # one class for each image, not several findings
        values = (values == np.arange(values.max() + 1)).astype(np.uint8)
    names = [f"label_{number}" for number in range(values.shape[1])]
    splits = pd.Series([split for split, paths, _ in parts for _ in paths])
    table = pd.DataFrame({"Path": [path for _, paths, _ in parts for path in paths]})
    return Prepared(
        table=table.join(pd.DataFrame(values, columns=names)),
        labels=names,
        official=splits,
        scanned=True,
        root="DIR   # this folder",
        notes=[
            "`label_N` is class or finding N; `medmnist.INFO` and https://medmnist.com list their names.",
            "The official split is kept.",
        ],
    )


def _load(file: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
    """Return (N, H, W) or (N, H, W, 3) images and their labels."""
    try:
        with zipfile.ZipFile(file) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
        if inflated > inflation_limit(file.stat().st_size):
            raise ManifestError(
                f"{file} inflates to {inflated} bytes, far more than a file of images does; download it again"
            )
        with np.load(file, allow_pickle=False) as archive:
            images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{file} is not a MedMNIST .npz file, or is damaged ({type(error).__name__})") from None
    plain = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not plain:
        raise ManifestError(
            f"{file}: {split}_images are {images.dtype} of shape {images.shape}, not 8-bit images;\n"
            "volumes cannot be written as PNG"
        )
    if len(images) != len(labels) or labels.dtype.kind not in "iub" or labels.size == 0 or labels.min() < 0:
        raise ManifestError(f"{file}: {split}_labels do not fit {split}_images; download the file again")
    return images, labels


def _write(images: NDArray[np.uint8], out: Path, split: str) -> list[str]:
    folder = f"images/{split}"
    paths = [f"{folder}/{number:06d}.png" for number in range(len(images))]
    try:
        (out / folder).mkdir(parents=True)
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(out / path)
    except OSError as error:
        raise SettingsError(
            f"cannot write to {out}: {error.strerror}; free some space or choose another folder"
        ) from None
    return paths
