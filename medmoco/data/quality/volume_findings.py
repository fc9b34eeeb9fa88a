"""The checks of `medmoco check` that only volumes need, and their description at the top of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.quality.examine import Examined
from medmoco.data.quality.findings import Finding, Rows
from medmoco.data.volume_io.canvases import recommended_spacing
from medmoco.data.volume_io.volume import AXES

Floats = NDArray[np.float64]

ODD_SPACING = 3.0
"""Ratio of a spacing to the median of its axis, or its inverse, above which it is an outlier. Source: our choice, the
ratio at which nnU-Net calls voxels anisotropic; slices of 1.25 mm among those of 3 mm are usual."""

_NAMES = tuple(axis.replace("_", "-") for axis in AXES)


def small_canvases(rows: Rows, files: Examined, settings: RunSettings) -> Finding:
    """Report volumes whose canvas, the body at `data.spacing`, is smaller than a view along an axis."""
    size = settings.views.size
    canvases = files.canvases[rows.file]
    at = np.flatnonzero(rows.own & files.readable[rows.file] & (canvases.min(axis=1) < size))
    details = [
        f"{_times(canvas)} voxels on the canvas, fewer than {size} along {_listed(canvas < size)}"
        for canvas in canvases[at]
    ]
    spacing = "the spacing of each file" if settings.data.spacing is None else f"data.spacing {_list(settings)}"
    remark = f"views.size {size} at {spacing}: the rest of a view is black; a smaller size or spacing avoids that"
    return Finding("warning", "smaller than a view", at, details, remark)


def odd_spacings(rows: Rows, files: Examined) -> Finding:
    """Report volumes whose spacing differs from the median of the first split by a factor of more than 3."""
    known = np.flatnonzero(rows.own & files.readable[rows.file])
    spacings = files.spacings[rows.file[known]]
    if not known.size:
        return Finding("warning", "spacing outlier", known, [])
    median = np.median(_reference(rows, files), axis=0)
    differ = np.maximum(spacings / median, median / spacings) > ODD_SPACING
    odd = differ.any(axis=1)
    details = [
        f"{_mm(spacing)} mm, far from the median along {_listed(which)}"
        for spacing, which in zip(spacings[odd], differ[odd], strict=True)
    ]
    remark = f"more than {ODD_SPACING:g} times, or less than a third of, the median of {_first_split(rows, files)}:"
    return Finding("warning", "spacing outlier", known[odd], details, f"{remark} {_mm(median)} mm")


def traits(rows: Rows, files: Examined) -> dict[str, Floats]:
    """Return traits of the volumes of train, val and test other than their content; nan for unreadable ones."""
    at = rows.file[rows.own]
    readable = files.readable[at]
    sizes, spacings = files.sizes[at].astype(np.float64), files.spacings[at]
    slices = np.take_along_axis(sizes, files.slice_axes[at, None].astype(np.int64), axis=1)[:, 0]
    found = {"slices": slices}
    for axis, name in enumerate(_NAMES):
        found |= {
            f"{name} voxels": sizes[:, axis],
            f"{name} spacing": spacings[:, axis],
            f"{name} extent": sizes[:, axis] * spacings[:, axis],
            f"slices along {name}": (files.slice_axes[at] == axis).astype(np.float64),
        }
    return {name: np.where(readable, values, np.nan) for name, values in found.items()}


def describe_volumes(rows: Rows, files: Examined) -> Iterator[str]:
    """Yield lines on formats, modalities, sizes and spacings, and the recommended `data.spacing`."""
    at = rows.file[rows.own & files.readable[rows.file]]
    formats = [files.formats[number] for number in files.format_of[at]]
    kinds = Counter(one.kind for one in formats).most_common()
    modalities = Counter(getattr(one, "modality", "") or "not stated" for one in formats).most_common()
    yield (
        f"volumes: {', '.join(f'{count:,} {kind}' for kind, count in kinds)};"
        f" modality: {', '.join(f'{count:,} {name}' for name, count in modalities)}"
    )
    yield f"voxels: {', '.join(_spans(files.sizes[at], ',.0f'))}"
    yield f"spacing: {', '.join(_spans(files.spacings[at], '.3g'))} mm"
    yield _recommendation(rows, files)


def _recommendation(rows: Rows, files: Examined) -> str:
    reference = _reference(rows, files)
    recommended = np.array(recommended_spacing(reference))
    rule = f"median of each axis in {_first_split(rows, files)}"
    finer = recommended < 0.9 * np.median(reference, axis=0)  # more than rounding
    if finer.any():
        rule += f"; {_listed(finer)}, where slices are thick, the 10th percentile"
    chosen = rows.own & files.readable[rows.file]
    sizes, spacings = files.sizes[rows.file[chosen]], files.spacings[rows.file[chosen]]
    resampled = (np.rint(sizes * spacings / recommended) != sizes).any(axis=1)  # Source: canvases.resample
    numbers, count = ", ".join(f"{spacing:g}" for spacing in recommended), f"{resampled.sum():,} of {len(resampled):,}"
    return f"recommended data.spacing: [{numbers}] ({rule}); it resamples {count} volumes"


def _reference(rows: Rows, files: Examined) -> Floats:
    """Return the spacings of the first split with readable volumes, (N, 3): train, if there is one."""
    known = rows.own & files.readable[rows.file]
    spacings: Floats = files.spacings[rows.file[known & (rows.source == rows.source[known].min())]]
    return spacings


def _first_split(rows: Rows, files: Examined) -> str:
    return rows.sources[int(rows.source[rows.own & files.readable[rows.file]].min())]


def _spans(values: NDArray[np.floating] | NDArray[np.integer], form: str) -> Iterator[str]:
    for name, (low, middle, high) in zip(_NAMES, np.percentile(values, [0, 50, 100], axis=0).T, strict=True):
        least, most = f"{low:{form}}", f"{high:{form}}"
        yield f"{name} {least}" if least == most else f"{name} {least} to {most} (median {middle:{form}})"


def _times(sides: NDArray[np.integer]) -> str:
    return " x ".join(f"{side:,}" for side in sides)


def _mm(spacing: Floats) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing)


def _listed(which: NDArray[np.bool_]) -> str:
    return " and ".join(name for name, chosen in zip(_NAMES, which, strict=True) if chosen)


def _list(settings: RunSettings) -> str:
    return f"[{', '.join(f'{spacing:g}' for spacing in settings.data.spacing or ())}]"
