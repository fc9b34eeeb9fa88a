"""Read NIfTI files (.nii, .nii.gz) with nibabel.

Source: the NIfTI-1 standard (nifti1.h): method 2 is the qform, method 3 the sform.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import DAMAGED, Floats, Unreadable
from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.geometry import check_affine
from medmoco.data.volume_io.headers import (
    NO_ORIENTATION,
    StoredVolume,
    VolumeFault,
    check_voxels,
    library,
    three_axes,
    without_header_values,
)

_GZIP = b"\x1f\x8b"
_MOST_INFLATED = 1032  # times the size of a compressed file. Source: zlib's technical notes
_MOST_EXTENSIONS = 2**24  # bytes before the voxels
_MM = {"meter": 1000.0, "micron": 0.001}
_SINGLE = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
_PAIRS = (b"ni1\0", b"ni2\0")


def nifti_version(path: Path) -> int:
    """Return 1 or 2 for a NIfTI file, compressed or not, and 0 for other files.

    Raises:
        Unreadable: it is a header whose voxels are in another file, or Analyze.
    """
    with _opened(path) as stream:
        try:
            start = stream.read(348)
        except (OSError, EOFError, zlib.error):  # of a damaged gzip file, whatever it contains
            raise Unreadable(f"the gzip file cannot be unpacked; {DAMAGED}") from None
    magic = {1: start[344:348], 2: start[4:12]}
    for version, single in _SINGLE.items():
        if magic[version] == single:
            return version
    if magic[1] in _PAIRS or magic[2][:4] in _PAIRS or start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        raise Unreadable("it is a pair of .hdr and .img files; convert it to a single .nii.gz file first")
    return 0


def open_nifti(path: Path, version: int, limits: Limits) -> StoredVolume:
    """Read the header of a NIfTI file.

    Raises:
        Unreadable: it is damaged, contains several volumes, or other values than integers and floating-point numbers.
        ImageError: it exceeds the limits.
    """
    with without_header_values("NIfTI"):
        header = raw_header(path, version)
        shape = three_axes(tuple(int(length) for length in header.get_data_shape()))
        dtype = header.get_data_dtype()
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise Unreadable("its voxels are colours or complex numbers; convert it to integers or 32-bit floats")
        check_voxels(shape, dtype.itemsize, limits)
        offset = int(header.get_data_offset())
        needed, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
        if not 0 <= offset <= _MOST_EXTENSIONS or needed > size * (_MOST_INFLATED if _is_gzip(path) else 1):
            raise Unreadable(f"the file is too small for its {' x '.join(map(str, shape))} voxels; {DAMAGED}")
        scaling = header.get_slope_inter()
        affine, faults = _affine(header)
        slice_axis = header.get_dim_info()[2]
    slope, intercept = (default if number is None else number for number, default in zip(scaling, (1, 0), strict=True))
    return StoredVolume(
        shape=shape,
        affine=affine,
        load=lambda: _load(path, (shape, dtype, offset, slope, intercept)),
        slice_axis=slice_axis,
        faults=faults,
        files=(path,),
    )


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as stream:
        if not _is_gzip(path):
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as inflated:
            yield cast(BinaryIO, inflated)


def raw_header(path: Path, version: int) -> Any:
    """Return nibabel's header, without extensions, which may be long and name the patient."""
    nibabel = library("nibabel")
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    with _opened(path) as stream:
        block = stream.read(kind.template_dtype.itemsize)
    header = kind(block, check=False)
    # Repairs what is harmless, as nibabel does when it loads a file, but without printing it.
    logger = nibabel.imageglobals.logger
    was_disabled, logger.disabled = logger.disabled, True
    try:
        header.check_fix(error_level=40)
    finally:
        logger.disabled = was_disabled
    return header


def _affine(header: Any) -> tuple[Floats, tuple[VolumeFault, ...]]:
    """Return the matrix from indices to RAS in mm, as nibabel chooses it, and faults of the orientation."""
    has_qform, has_sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    faults = []
    if has_sform:
        affine = header.get_sform()
    elif has_qform:
        affine = header.get_qform()
    else:
        affine = header.get_base_affine()
        faults.append(NO_ORIENTATION)
    check_affine(affine)
    if has_qform and has_sform and _mirrored(header.get_qform(), affine):
        faults.append(
            VolumeFault(
                "left_right_conflict",
                "its qform and sform disagree on left and right; find out which one is right, and write it to both",
            )
        )
    unit = header.get_xyzt_units()[0]
    if unit in _MM:
        affine = np.diag([_MM[unit]] * 3 + [1.0]) @ affine
        text = f"its unit is {unit}; its spacing is converted to mm"
        faults.append(VolumeFault("other_unit", text, "warning"))
    return affine, tuple(faults)


def _mirrored(one: Floats, other: Floats) -> bool:
    """Return whether two matrices disagree on left and right.

    They do if one is a mirror image of the other, or if the axis closest to left and right runs the other way.
    """
    axis = int(np.abs(other[0, :3] / np.linalg.norm(other[:3, :3], axis=0)).argmax())
    opposite = one[0, axis] * other[0, axis] < 0
    return bool(opposite or np.linalg.det(one[:3, :3]) * np.linalg.det(other[:3, :3]) < 0)


def _load(path: Path, spec: tuple[Any, ...]) -> NDArray[np.float32]:
    """Read the voxels plane by plane, so that memory never exceeds that of the result."""
    nibabel = library("nibabel")
    shape = spec[0]
    values = np.empty(shape, np.float32, order="F")
    with without_header_values("NIfTI"), _opened(path) as stream:
        proxy = nibabel.arrayproxy.ArrayProxy(stream, spec, mmap=False)
        with np.errstate(over="ignore"):  # values that float32 cannot hold become infinite, and are refused
            for plane in range(shape[2]):
                values[..., plane] = proxy[..., plane]
        stream.read(2**16)  # the end of a gzip file, which has a checksum
    return values
