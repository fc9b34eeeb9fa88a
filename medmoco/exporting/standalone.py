"""The code that reads and prepares images or volumes, as one file that works without medmoco: prepare.py of exports."""

from __future__ import annotations

from functools import cache
from typing import Literal

from medmoco.data.augment import parameters, views, volume_views, volume_warps, warps
from medmoco.data.image_io import file_format, images, intensity, limits, preprocessing, windowing
from medmoco.data.image_io.formats import bands, dicom, jpeg2000, png_jpeg, tiff
from medmoco.data.volume_io import (
    canvases,
    frames,
    geometry,
    headers,
    nifti,
    nrrd_metaimage,
    reading,
    series,
    volume,
)
from medmoco.exporting import network_file, reload, segmentation_file, volume_file
from medmoco.exporting.joining import joined
from medmoco.models import maps
from medmoco.models.networks import volumes
from medmoco.segmentation import networks, windows
from medmoco.segmentation.annotated import grids
from medmoco.segmentation.masks import mask_files
from medmoco.segmentation.masks import masks as mask_values
from medmoco.utils import files, portable_math

_IMAGES = (intensity, file_format, png_jpeg, tiff, bands, windowing, jpeg2000, dicom, preprocessing)
"""The modules, each after those that it imports."""

_VOLUMES = (
    intensity, limits, file_format, png_jpeg, tiff, bands, windowing, jpeg2000, dicom, preprocessing, volume, headers,
    geometry, nifti, nrrd_metaimage, frames, series, reading, canvases, portable_math, parameters, warps, volume_warps,
    volume_views, volume_file,
)  # fmt: skip

_MASKS = (
    intensity, limits, file_format, png_jpeg, tiff, bands, windowing, jpeg2000, dicom, preprocessing, images, volume,
    headers, geometry, nifti, nrrd_metaimage, frames, series, reading, canvases, portable_math, parameters, warps,
    views, volume_warps, volume_views, volume_file, files, grids, mask_values, mask_files, windows, segmentation_file,
)  # fmt: skip

_NETWORK = (reload, volumes, maps, networks, network_file)

_ELSEWHERE = '''\
class ImageError(ValueError):
    """The volume cannot be used; the message gives the reason, and neither paths nor patient data."""


class SettingsError(ValueError):
    """A library is not installed."""


def similar_file_hint(file: str) -> str:
    """Return nothing; medmoco looks for a similar file here."""
    return ""'''
"""What prepare.py for volumes and masks has instead of medmoco's own errors and search."""


@cache
def standalone_source(dimensions: Literal[2, 3] = 2, *, masks: bool = False) -> str:
    """Return the text of prepare.py for images (2) or volumes (3), or for the masks of both."""
    if masks:
        return joined(_MASKS, entries=["segment", "save"], before=_ELSEWHERE)
    return joined(_IMAGES) if dimensions == 2 else joined(_VOLUMES, entries=["volume"], before=_ELSEWHERE)


@cache
def network_source() -> str:
    """Return the text of network.py, which builds a segmentation network."""
    return joined(_NETWORK, entries=["network"])
