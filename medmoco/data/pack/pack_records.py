"""The results for images as a complete pack stores them: as records of its index, and as lists of rows with texts."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.data.pack.pack import ROW
from medmoco.data.pack.pack_shards import ImageResult, VolumeResult, write_atomically

Lists = defaultdict[tuple[str, int], list[str]]
"""Texts by split and row."""


def fill(rows: NDArray[Any], images: list[ImageResult]) -> None:
    """Write the results for the n images of a shard into their records (n,) of ROW or VOLUME_ROW."""
    for column in ("bytes", "sha256"):
        rows[column] = [getattr(image, column) for image in images]
    if rows.dtype == ROW:
        for column in ("height", "width"):
            rows[column] = [getattr(image, column) for image in images]
        return
    for column in VolumeResult._fields:
        rows[column] = [getattr(image.volume, column) for image in images]
    rows["start"] = np.cumsum(rows["stored"]) - rows["stored"]


def result_of(row: Any, notices: Lists, failures: Lists) -> ImageResult:
    """Return the result for an image from its record and the lists."""
    where = row["split"].decode(), int(row["row"])
    texts = tuple(notices[where]), "".join(failures[where])
    if row.dtype == ROW:
        height, width, size = (int(row[column]) for column in ("height", "width", "bytes"))
        return ImageResult(height, width, size, row["sha256"].decode(), *texts)
    shape, spacing = (tuple(row[column].tolist()) for column in ("shape", "spacing"))
    volume = VolumeResult(int(row["stored"]), shape, spacing, int(row["slice_axis"]))
    return ImageResult(0, 0, int(row["bytes"]), row["sha256"].decode(), *texts, volume)


def write_list(file: Path, what: str, lines: Iterable[tuple[str, int, str]]) -> str:
    """Write a list of rows, with split, row and a text; return its SHA-256."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "row", what), *lines])
    return write_atomically(file, lambda stream: stream.write(text.getvalue().encode()))


def read_list(file: Path) -> Lists:
    """Return the texts of a list."""
    listed: Lists = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as stream:
        for split, row, what in list(csv.reader(stream))[1:]:
            listed[split, int(row)].append(what)
    return listed
