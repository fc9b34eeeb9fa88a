"""TIFF files written tag by tag, so that no library's idea of the format is in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPRIGHT = {
    1: lambda rows: rows,
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: np.swapaxes(rows, 0, 1),
    6: lambda rows: np.swapaxes(rows[::-1], 0, 1),
    7: lambda rows: np.swapaxes(rows[::-1, ::-1], 0, 1),
    8: lambda rows: np.swapaxes(rows[:, ::-1], 0, 1),
}
"""Orientation -> what turns stored rows (H, W) upright. Source: TIFF 6.0, tag 274."""


def page_of(
    rows: NDArray[Any],
    *,
    deflated: bool = False,
    tile: int = 0,
    tags: Mapping[int, int | Sequence[int] | bytes] | None = None,
) -> tuple[list[bytes], dict[int, Any]]:
    """Return the strips or tiles of a page, (H, W) or (H, W, C), and its tags but for where they lie."""
    height, width, *channels = rows.shape
    samples, bits = channels[0] if channels else 1, 8 * rows.dtype.itemsize
    form = {"u": 1, "i": 2, "f": 3}[rows.dtype.kind]
    parts = [rows]
    if tile:
        padded = np.pad(rows, [(0, -height % tile), (0, -width % tile), *[(0, 0)] * len(channels)])
        parts = [
            padded[top : top + tile, left : left + tile]
            for top in range(0, padded.shape[0], tile)
            for left in range(0, padded.shape[1], tile)
        ]
    data = [np.ascontiguousarray(part).tobytes() for part in parts]
    data = [zlib.compress(part) for part in data] if deflated else data
    own = {256: width, 257: height, 258: [bits] * samples, 259: 8 if deflated else 1, 262: 2 if samples > 2 else 1,
           277: samples, 339: [form] * samples}  # fmt: skip
    own |= {322: tile, 323: tile} if tile else {278: height}
    return data, {**own, **(tags or {})}


def tiff(*pages: tuple[list[bytes], dict[int, Any]], order: str = "<") -> bytes:
    """Join pages to a file; `order` must be that of their samples."""
    out = bytearray(b"II*\0" if order == "<" else b"MM\0*")
    link = len(out)
    out += bytes(4)
    for data, tags in pages:
        offsets = []
        for part in data:
            offsets.append(len(out))
            out += part + b"\0" * (len(part) % 2)
        tiled = 322 in tags
        tags = {**{324 if tiled else 273: offsets, 325 if tiled else 279: [len(part) for part in data]}, **tags}
        entries = bytearray()
        for tag, value in sorted(tags.items()):
            if isinstance(value, bytes):
                kind, count, packed = 1, len(value), value
            else:
                values = [value] if isinstance(value, int) else list(value)
                kind, count, packed = 4, len(values), struct.pack(f"{order}{len(values)}L", *values)
            if len(packed) > 4:
                place = len(out)
                out += packed + b"\0" * (len(packed) % 2)
                packed = struct.pack(f"{order}L", place)
            entries += struct.pack(f"{order}HHL", tag, kind, count) + packed.ljust(4, b"\0")
        struct.pack_into(f"{order}L", out, link, len(out))
        out += struct.pack(f"{order}H", len(tags)) + entries
        link = len(out)
        out += bytes(4)
    return bytes(out)
