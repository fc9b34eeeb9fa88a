"""What tells that two images are the same: exactly by their pixels, nearly by their coarse pattern of light and dark.

A near duplicate is the same exposure stored again: re-encoded, resized, another window or tone curve. Chest films of
different patients look so alike that the usual difference hash gives hundreds of them the same 64 bits. So the pattern
is the ranks of 32 x 32 cells, which no monotone tone curve changes, and a bit of the hash says on which side of the
median image a frequency lies, which halves the images at every bit. Measurements: docs/check.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.images import Canvas
from medmoco.data.image_io.intensity import Pixels

Patterns = NDArray[np.uint8]
Pairs = NDArray[np.int64]

CELLS = 32
NEAR = 0.99
"""Rank correlation of two patterns from which on they are near duplicates. Source: docs/check.md."""

_BANDS, _BAND_BITS = 3, 21
_BITS = _BANDS * _BAND_BITS  # of the hash
_FLIPPED = 8  # bits of the hash in which a candidate may differ
_EXHAUSTIVE = 4096  # images up to which every pair is compared: the medians of a few images make a poor hash
_CHUNK = 2**14  # pairs compared at once, 128 MiB of patterns


def pixel_digest(pixels: Pixels) -> bytes:
    """Return the SHA-256 of an image's shape, depth and pixels: equal for equal images, whatever their files."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.itemsize}\n".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    return digest.digest()


def canvas_digest(canvas: Canvas) -> bytes:
    """Return the digest of a canvas's image; empty where it is constant, as all such images are alike."""
    pixels = canvas.pixels[: canvas.height, : canvas.width]
    return pixel_digest(pixels) if pixels.min() < pixels.max() else b""


def pattern(pixels: Pixels) -> Patterns:
    """Return the ranks of an image's 32 x 32 cells, (1024,), 0 to 255, ties at their middle; any shape is squeezed.

    Of channels it is that of their mean.
    """
    if pixels.ndim == 3:
        pixels = pixels.mean(2, dtype=np.float32)
    while min(pixels.shape) >= 16 * CELLS:  # halving is far faster than one fractional step
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    cells = cv2.resize(pixels.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel()
    cells = np.rint(64 * cells)  # the last bits of a flat area are no pattern
    ordered = np.sort(cells)
    twice = np.searchsorted(ordered, cells, "left") + np.searchsorted(ordered, cells, "right")
    ranks: Patterns = (twice * (128 / CELLS**2)).astype(np.uint8)
    return ranks


def near_duplicates(patterns: Patterns, which: NDArray[np.int64], exhaustive: int = _EXHAUSTIVE) -> Iterator[Pairs]:
    """Yield the pairs whose patterns correlate by `NEAR` or more, some at a time, each pair once.

    Up to `exhaustive` images are all compared with each other. More are compared where their hashes differ in at most 8
    of 63 bits, and one of three bands of 21 bits in at most one. So pairs within 5 bits are surely found.

    Args:
        patterns: Of all images, (N, 1024).
        which: (M,) positions of those to compare.
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
    """Return (M, 1024) with mean 0 and unit L2 norm each, so that a product is Spearman's coefficient.

    A pattern without any contrast becomes zero: it is like none.
    """
    centred: NDArray[np.float32] = patterns - patterns.mean(axis=1, keepdims=True, dtype=np.float32)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return centred


def _hashes(patterns: Patterns, which: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return (M,) 63-bit hashes: the lowest 63 frequencies of a pattern, above the median of all patterns or not."""
    waves = np.cos(np.pi * np.outer(np.arange(CELLS), 2 * np.arange(CELLS) + 1) / (2 * CELLS))
    lowest = sorted(np.ndindex(CELLS, CELLS), key=lambda at: (sum(at), at))[1 : 1 + _BITS]  # without the mean
    basis = np.stack([np.outer(waves[down], waves[across]).ravel() for down, across in lowest], axis=1)
    strengths = np.concatenate(
        [
            patterns[which[start : start + _CHUNK]].astype(np.float32) @ basis.astype(np.float32)
            for start in range(0, len(which), _CHUNK)
        ]
    )
    bits = strengths > np.median(strengths, axis=0)
    dealt = bits.reshape(-1, _BAND_BITS, _BANDS).transpose(0, 2, 1)  # low and high frequencies to each band
    hashes: NDArray[np.uint64] = dealt.reshape(-1, _BITS) @ (np.uint64(1) << np.arange(_BITS, dtype=np.uint64))
    return hashes


def _band(hashes: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    """Return the bits of one band."""
    bits = (hashes >> np.uint64(_BAND_BITS * number)) & np.uint64(2**_BAND_BITS - 1)
    return bits.astype(np.int64)


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Yield pairs that differ in at most one bit of some band, and in few of all; each pair from its first band."""
    for band in range(_BANDS):
        for pairs in _neighbours(_band(hashes, band)):
            differing = hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]
            few = np.bitwise_count(differing) <= _FLIPPED
            for earlier in range(band):
                few &= np.bitwise_count(_band(differing, earlier)) > 1
            if few.any():
                yield np.sort(pairs[few], axis=1)


def _neighbours(keys: NDArray[np.int64]) -> Iterator[Pairs]:
    """Yield the pairs, once each, whose keys are the same or differ in one bit."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=2**_BAND_BITS)
    ends = np.cumsum(counts)
    for flipped in (0, *(1 << bit for bit in range(_BAND_BITS))):
        # Each image meets those with its key, one bit flipped: the lower key asks, or of the same keys the earlier.
        asking = order[keys[order] & flipped == 0]
        wanted = keys[asking] ^ flipped
        since = ends[wanted] - counts[wanted] if flipped else np.arange(1, len(order) + 1)
        found = ends[wanted] - since
        for start, stop in _slices(found):
            lengths = found[start:stop]
            offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            met = order[np.repeat(since[start:stop], lengths) + offsets]
            yield np.stack([np.repeat(asking[start:stop], lengths), met], axis=1)


def _slices(lengths: NDArray[np.int64], most: int = 2**22) -> Iterator[tuple[int, int]]:
    """Cut positions into runs whose lengths sum to about `most` or to one long one."""
    block = (np.cumsum(lengths) - lengths) // most
    starts = np.flatnonzero(np.diff(block, prepend=-1)).tolist()
    yield from pairwise([*starts, len(lengths)])
