"""Images as users pass them: a split, a folder, paths, a table or arrays, all read as canvases in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.images import Canvas, read_canvas
from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.loading.loading import CanvasReader, Samples, canvas_reader
from medmoco.data.loading.preprocessing import Image, Preprocessing
from medmoco.data.manifest.columns import SERIES
from medmoco.data.manifest.manifest import SPLITS, Split
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import ImageError, SettingsError
from medmoco.evaluation.features.inputs import load_unlabelled
from medmoco.utils.files import IMAGE_SUFFIXES, VOLUME_SUFFIXES

Images = Split | str | os.PathLike[str] | pd.DataFrame | NDArray[np.generic] | Sequence[Image]
"""A split or its name, a folder or a file, a table with a `Path` column, an array (N, H, W[, C]), or a list of files or
arrays."""


class ImageSet(NamedTuple):
    """N images that can be read.

    Attributes:
        rows: (N,) row numbers in a manifest, or positions from 0.
        read: Returns the canvases at given positions.
        what: What the rows refer to.
        in_memory: Whether the pixels are already decoded.
    """

    rows: NDArray[np.int64]
    read: CanvasReader
    what: str
    in_memory: bool = False


def image_set(images: Images, root: str | os.PathLike[str] | None, settings: RunSettings) -> ImageSet:
    """Return a user's images in readable form.

    Args:
        images: See `Images`.
        root: Folder that relative paths are in; by default the current folder.
        settings: Settings of the preprocessing; their manifest is used for the name of a split.

    Raises:
        SettingsError: the argument is not images.
        ManifestError: the manifest cannot be used.
    """
    if isinstance(images, str) and images in SPLITS:
        images = load_unlabelled(settings, images)
    if isinstance(images, Split):
        return ImageSet(images.rows, canvas_reader(images, settings.data), f"of {images.csv.name}")
    frames, series, volumes = None, None, settings.data.dimensions == 3
    if isinstance(images, pd.Series) or (isinstance(images, np.ndarray) and images.ndim == 1):
        images = list(images)
    if isinstance(images, pd.DataFrame):
        if volumes and SERIES in images:
            series = images[SERIES].fillna("").astype(str).tolist()
        images, frames = _paths_and_frames(images)
    elif isinstance(images, str | os.PathLike):
        path = Path(root or "") / images
        images = volumes_in(path) if volumes else files_in(path, bands=isinstance(settings.data.channels, int))
    elif isinstance(images, np.ndarray) and images.ndim not in ((4,) if volumes else (3, 4)):
        expected = "(N, X, Y, Z)" if volumes else "(N, H, W) or (N, H, W, C)"
        raise SettingsError(f"an array of shape {images.shape} is not {expected}; pass one image as [image]")
    elif not isinstance(images, Sequence | np.ndarray):
        raise SettingsError(
            f"{type(images).__name__} is not images; pass paths, a folder, a table with a Path column, arrays or a"
            " split"
        )
    in_memory = not any(isinstance(image, str | os.PathLike) for image in images)
    if root is not None:
        images = [Path(root) / image if isinstance(image, str | os.PathLike) else image for image in images]
    read = partial(_read, images=images, frames=frames, series=series, settings=settings)
    return ImageSet(np.arange(len(images)), read, "counted from 0", in_memory)


def _read(
    samples: Samples,
    *,
    images: Sequence[Image] | NDArray[Any],
    frames: Sequence[int] | None,
    series: Sequence[str] | None,
    settings: RunSettings,
) -> tuple[list[Canvas | VolumeCanvas], tuple[str, ...]]:
    """Read files and convert arrays to canvases; error messages contain no path."""
    canvases: list[Canvas | VolumeCanvas] = []
    preprocessing = Preprocessing.of(settings)
    for sample in samples.tolist():
        image = images[sample]
        if isinstance(image, str | os.PathLike) and preprocessing.dimensions == 2:
            canvases.append(read_canvas(Path(image), frames[sample] if frames else 1, settings.data)[0])
        elif isinstance(image, str | os.PathLike):
            canvases.append(preprocessing.canvas(Path(image), series=series[sample] if series else ""))
        else:
            canvases.append(preprocessing.canvas(image))
    return canvases, ()


def _paths_and_frames(table: pd.DataFrame) -> tuple[list[str], list[int] | None]:
    if "Path" not in table:
        raise SettingsError(f"the table has no column Path; it has: {', '.join(map(str, table.columns[:12]))}")
    if table["Path"].isna().any():
        raise SettingsError(f"{int(table['Path'].isna().sum())} rows of the table have no Path; fill or remove them")
    paths = [os.fspath(path) for path in table["Path"]]
    if "Frame" not in table:
        return paths, None
    frames = pd.to_numeric(table["Frame"], errors="coerce").fillna(1)
    return paths, frames.astype(int).tolist()


def files_in(path: Path, *, bands: bool) -> list[Path]:
    """Return a file itself, or the images in a folder and its subfolders, sorted by name."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file())
    found = [file for file in files if _is_image(file, bands=bands)]
    if not found:
        raise ImageError("the folder holds no image; DICOM, PNG, JPEG and TIFF files are read, and .npy for bands")
    return found


def volumes_in(path: Path) -> list[Path]:
    """Return a file itself, the folder of a DICOM series itself, or all volumes below a folder, sorted by name."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for folder, _, names in os.walk(path):
        files = [Path(folder, name) for name in names if not name.startswith(".")]
        volumes = [file for file in files if file.name.lower().endswith(VOLUME_SUFFIXES)]
        found += volumes or ([Path(folder)] if any(_is_image(file, bands=False) for file in files) else [])
    if not found:
        raise ImageError("the folder holds no volume; NIfTI, NRRD, MetaImage and DICOM series are read")
    return sorted(found)


def _is_image(file: Path, *, bands: bool) -> bool:
    """Recognise an image by its suffix, or else by its first bytes."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        return kind_of_file(file) != "NPY" or bands
    except (OSError, Unreadable):
        return False
