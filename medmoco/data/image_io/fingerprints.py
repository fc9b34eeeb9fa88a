"""Detect duplicate images, exactly by their pixels and nearly by their coarse pattern of light and dark.

A near duplicate is the same exposure stored again: re-encoded, resized, or with another window or tone curve. Chest
radiographs of different patients are so similar that the usual difference hash gives hundreds of them the same 64 bits.
So the pattern consists of the ranks of 32 x 32 cells, which are invariant to monotone tone curves, and each bit of the
hash compares one frequency with its median over all images, which splits them in half. Measurements: docs/check.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.images import Canvas
from medmoco.data.image_io.intensity import Pixels

Patterns = NDArray[np.uint8]
Pairs = NDArray[np.int64]

CELLS = 32
NEAR = 0.99
"""Smallest rank correlation of the patterns of near duplicates. Source: docs/check.md."""

_BANDS, _BAND_BITS = 3, 21
_BITS = _BANDS * _BAND_BITS  # of the hash
_FLIPPED = 8  # bits of the hash in which candidates may differ
_EXHAUSTIVE = 4096  # number of images up to which every pair is compared: medians of few images make a poor hash
_CHUNK = 2**14  # pairs compared at once, 128 MiB of patterns


class VolumePixels(Protocol):
    """A volume's canvas, see `volume_io`."""

    @property
    def pixels(self) -> Any: ...  # noqa: D102 - (X, Y, Z)


def pixel_digest(pixels: Pixels) -> bytes:
    """Return the SHA-256 of an image's shape, depth and pixels, which does not depend on the file format."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.itemsize}\n".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    return digest.digest()


def canvas_digest(canvas: Canvas | VolumePixels) -> bytes:
    """Return the digest of a canvas's image or volume; empty for constant ones, which are all alike."""
    pixels = canvas.pixels[: canvas.height, : canvas.width] if isinstance(canvas, Canvas) else canvas.pixels[:, :, :]
    return pixel_digest(pixels) if pixels.min() < pixels.max() else b""


def pattern(pixels: Pixels) -> Patterns:
    """Return the ranks of an image's 32 x 32 cells, (1024,) uint8, with ties at their mean rank.

    Images of any shape are resized to a square; channels are averaged.
    """
    if pixels.ndim == 3:
        pixels = pixels.mean(2, dtype=np.float32)
    while min(pixels.shape) >= 16 * CELLS:  # halving is far faster than one fractional step
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    cells = cv2.resize(pixels.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel()
    cells = np.rint(64 * cells)  # rounding errors in a flat area are not a pattern
    ordered = np.sort(cells)
    twice = np.searchsorted(ordered, cells, "left") + np.searchsorted(ordered, cells, "right")
    ranks: Patterns = (twice * (128 / CELLS**2)).astype(np.uint8)
    return ranks


def near_duplicates(patterns: Patterns, which: NDArray[np.int64], exhaustive: int = _EXHAUSTIVE) -> Iterator[Pairs]:
    """Yield the pairs whose patterns correlate by `NEAR` or more, in chunks, each pair once.

    Up to `exhaustive` images are all compared with each other. Beyond, pairs are compared if their hashes differ in at
    most 8 of 63 bits, and at least one of three bands of 21 bits in at most one. All pairs within 5 bits are found.

    Args:
        patterns: Patterns of all images, (N, 1024).
        which: (M,) positions of the images to compare.
        exhaustive: Largest M for which every pair is compared.

    Yields:
        (P, 2) positions in `which`, the smaller first.
    """
    if len(which) <= exhaustive:
        yield from _alike_of_all(patterns[which])
        return
    for candidates in _candidates(_hashes(patterns, which)):
        for start in range(0, len(candidates), _CHUNK):
            chunk = candidates[start : start + _CHUNK]
            one, other = (_standard(patterns[which[side]]) for side in chunk.T)
            alike = np.einsum("pk,pk->p", one, other) >= NEAR
            if alike.any():
                yield chunk[alike]


def _alike_of_all(patterns: Patterns) -> Iterator[Pairs]:
    standard = _standard(patterns)
    for start in range(0, len(patterns), 1024):
        correlations = standard[start : start + 1024] @ standard[start:].T
        alike = np.argwhere(np.triu(correlations >= NEAR, 1))
        if alike.size:
            yield alike + start


def _standard(patterns: Patterns) -> NDArray[np.float32]:
    """Return (M, 1024) with mean 0 and unit L2 norm, so that inner products are Spearman's coefficients.

    A pattern without contrast becomes zero, and so matches none.
    """
    centred: NDArray[np.float32] = patterns - patterns.mean(axis=1, keepdims=True, dtype=np.float32)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return centred


def _hashes(patterns: Patterns, which: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return (M,) 63-bit hashes: whether each of a pattern's 63 lowest frequencies exceeds its median."""
    waves = np.cos(np.pi * np.outer(np.arange(CELLS), 2 * np.arange(CELLS) + 1) / (2 * CELLS))
    lowest = sorted(np.ndindex(CELLS, CELLS), key=lambda at: (sum(at), at))[1 : 1 + _BITS]  # without the mean
    basis = np.stack([np.outer(waves[down], waves[across]).ravel() for down, across in lowest], axis=1)
    chunks = np.split(which, range(_CHUNK, len(which), _CHUNK))
    strengths = np.concatenate([patterns[chunk].astype(np.float32) @ basis.astype(np.float32) for chunk in chunks])
    bits = strengths > np.median(strengths, axis=0)
    by_band = bits.reshape(-1, _BAND_BITS, _BANDS).transpose(0, 2, 1)  # low and high frequencies in each band
    hashes: NDArray[np.uint64] = by_band.reshape(-1, _BITS) @ (np.uint64(1) << np.arange(_BITS, dtype=np.uint64))
    return hashes


def _band(hashes: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    """Return the bits of one band."""
    bits = (hashes >> np.uint64(_BAND_BITS * number)) & np.uint64(2**_BAND_BITS - 1)
    return bits.astype(np.int64)


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Yield pairs that differ in at most one bit of some band and in few bits overall; each pair once."""
    for band in range(_BANDS):
        for pairs in _neighbours(_band(hashes, band)):
            differing = hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]
            few = np.bitwise_count(differing) <= _FLIPPED
            for earlier in range(band):
                few &= np.bitwise_count(_band(differing, earlier)) > 1
            if few.any():
                yield np.sort(pairs[few], axis=1)


def _neighbours(keys: NDArray[np.int64]) -> Iterator[Pairs]:
    """Yield the pairs whose keys are equal or differ in one bit, each pair once."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=2**_BAND_BITS)
    ends = np.cumsum(counts)
    for flipped in (0, *(1 << bit for bit in range(_BAND_BITS))):
        # Each image is paired with those whose key differs in this bit, from the lower key; or of equal keys, from the
        # earlier image.
        left = order[keys[order] & flipped == 0]
        targets = keys[left] ^ flipped
        since = ends[targets] - counts[targets] if flipped else np.arange(1, len(order) + 1)
        matches = ends[targets] - since
        for start, stop in _slices(matches):
            lengths = matches[start:stop]
            offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            right = order[np.repeat(since[start:stop], lengths) + offsets]
            yield np.stack([np.repeat(left[start:stop], lengths), right], axis=1)


def _slices(lengths: NDArray[np.int64], most: int = 2**22) -> Iterator[tuple[int, int]]:
    """Yield ranges of positions whose lengths sum to about `most`, or that consist of a single longer one."""
    block = (np.cumsum(lengths) - lengths) // most
    starts = np.flatnonzero(np.diff(block, prepend=-1)).tolist()
    yield from pairwise([*starts, len(lengths)])
