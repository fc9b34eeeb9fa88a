"""What users give as images: a split, a folder, paths, a table or arrays, to be read as canvases in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.images import Canvas, read_canvas
from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.loading.loading import CanvasReader, Samples, canvas_reader
from medmoco.data.loading.preprocessing import Image, Preprocessing
from medmoco.data.manifest.manifest import SPLITS, Split
from medmoco.errors import ImageError, SettingsError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.utils.files import IMAGE_SUFFIXES

Images = Split | str | os.PathLike[str] | pd.DataFrame | NDArray[np.generic] | Sequence[Image]
"""A split or its name, a folder or a file, a table with a `Path` column, an array (N, H, W[, C]), or a list of files or
arrays."""


@dataclass(frozen=True)
class ImageSet:
    """N images that can be read.

    Attributes:
        rows: (N,), how the user counts them: rows of a manifest, or positions from 0.
        read: What turns positions into canvases.
        what: What the rows count.
        in_memory: The pixels are decoded already.
    """

    rows: NDArray[np.int64]
    read: CanvasReader
    what: str
    in_memory: bool = False


@dataclass(frozen=True)
class _Reader:
    """Reads files as the settings say, and takes arrays; errors carry no path."""

    images: Sequence[Image] | NDArray[Any]
    frames: Sequence[int] | None
    preprocessing: Preprocessing
    settings: RunSettings

    def __call__(self, samples: Samples) -> tuple[list[Canvas], tuple[str, ...]]:
        canvases = []
        for sample in samples.tolist():
            image = self.images[sample]
            if isinstance(image, str | os.PathLike):
                frame = 1 if self.frames is None else self.frames[sample]
                canvases.append(read_canvas(Path(image), frame, self.settings.data)[0])
            else:
                canvases.append(self.preprocessing.canvas(image))
        return canvases, ()


def image_set(images: Images, root: str | os.PathLike[str] | None, settings: RunSettings) -> ImageSet:
    """Return the images that a user gives.

    Args:
        images: See `Images`.
        root: Folder that relative paths are in; the current folder if it is not given.
        settings: Of the images' preparation; a split's name is looked up in their manifest.

    Raises:
        SettingsError: what is given is not images.
        ManifestError: the manifest cannot be used.
    """
    if isinstance(images, str) and images in SPLITS:
        unlabelled = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": {}})})
        images = load_splits(unlabelled, [images], patients_matter=False)[images]
    if isinstance(images, Split):
        return ImageSet(images.rows, canvas_reader(images, settings.data), f"of {images.csv.name}")
    frames = None
    if isinstance(images, pd.Series) or (isinstance(images, np.ndarray) and images.ndim == 1):
        images = list(images)
    if isinstance(images, pd.DataFrame):
        images, frames = _of_table(images)
    elif isinstance(images, str | os.PathLike):
        images = _of_path(Path(root or "") / images, bands=isinstance(settings.data.channels, int))
    elif isinstance(images, np.ndarray) and images.ndim not in (3, 4):
        raise SettingsError(
            f"an array of shape {images.shape} is not (N, H, W) or (N, H, W, C); give one image as [image]"
        )
    elif not isinstance(images, Sequence | np.ndarray):
        raise SettingsError(
            f"{type(images).__name__} is not images; give paths, a folder, a table with a Path column, arrays or a"
            " split"
        )
    in_memory = not any(isinstance(image, str | os.PathLike) for image in images)
    if root is not None:
        images = [Path(root) / image if isinstance(image, str | os.PathLike) else image for image in images]
    read = _Reader(images, frames, Preprocessing.of(settings), settings)
    return ImageSet(np.arange(len(images)), read, "counted from 0", in_memory)


def _of_table(table: pd.DataFrame) -> tuple[list[str], list[int] | None]:
    if "Path" not in table:
        raise SettingsError(f"the table has no column Path; it has: {', '.join(map(str, table.columns[:12]))}")
    if table["Path"].isna().any():
        raise SettingsError(f"{int(table['Path'].isna().sum())} rows of the table have no Path; fill or remove them")
    paths = [os.fspath(path) for path in table["Path"]]
    if "Frame" not in table:
        return paths, None
    frames = pd.to_numeric(table["Frame"], errors="coerce").fillna(1)
    return paths, frames.astype(int).tolist()


def _of_path(path: Path, *, bands: bool) -> list[Path]:
    """Return a file, or the images at every depth of a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file())
    found = [file for file in files if _is_image(file, bands=bands)]
    if not found:
        raise ImageError("the folder holds no image; DICOM, PNG, JPEG and TIFF files are read, and .npy for bands")
    return found


def _is_image(file: Path, *, bands: bool) -> bool:
    """Tell an image by its suffix, or else by how it begins."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        return kind_of_file(file) != "NPY" or bands
    except (OSError, Unreadable):
        return False
