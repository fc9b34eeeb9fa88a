"""Masks as run lengths, the text with which tables of Kaggle's competitions describe them.

A text has pairs of a start and a length, down the columns from the left. Kaggle's usual starts are "absolute": the
first pixel is 1. Those of SIIM-ACR Pneumothorax are "relative": the number of pixels since the end of the previous run.
"-1" is an empty mask, and "|" joins several masks of one image.
Source: the evaluation pages of Kaggle's Data Science Bowl 2018 and of SIIM-ACR Pneumothorax.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medmoco.errors import ImageError

Runs = Literal["absolute", "relative"]

_NUMBER = re.compile(r"[0-9]{1,18}")


def looks_like_runs(cell: str) -> bool:
    """Return whether a cell seems to have run lengths, and not a path."""
    words = cell.replace("|", " ").split()
    return words[:1] == ["-1"] or (len(words) > 1 and all(map(_NUMBER.fullmatch, words)))


def decode_runs(text: str, shape: tuple[int, int], kind: Runs) -> NDArray[np.bool_]:
    """Return the mask (H, W) that run lengths describe.

    Raises:
        ImageError: the text is not pairs of whole numbers, or a run exceeds the image; or absolute runs overlap or are
            out of order, as relative ones seem to.
    """
    height, width = shape
    flat = np.zeros(height * width, bool)  # column after column
    for part in text.split("|"):
        for first, end in _bounds(part, shape, kind):
            flat[first:end] = True
    return flat.reshape(width, height).T


def _bounds(part: str, shape: tuple[int, int], kind: Runs) -> list[tuple[int, int]]:
    """Return the first pixel, from 0, and the end of each run of a mask."""
    words = part.split()
    if words == ["-1"]:
        return []
    if not words or len(words) % 2 or not all(map(_NUMBER.fullmatch, words)):
        what = f"{len(words)} numbers, not pairs" if all(map(_NUMBER.fullmatch, words)) else "other text than numbers"
        raise ImageError(
            f"run lengths are pairs of a start and a length, or -1 for an empty mask, but the cell has {what};\n"
            "correct it, or remove segmentation.runs if masks are files"
        )
    height, width = shape
    bounds: list[tuple[int, int]] = []
    end = 0
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        first = start - 1 if kind == "absolute" else end + start
        if kind == "relative" or length:  # an absolute run without pixels, as in "0 0", has no place
            if first < end:
                raise ImageError(
                    "its runs overlap, are out of order or start at 0, which absolute ones never do;\n"
                    "correct the cell, or set segmentation.runs=relative if starts count from the end of the previous"
                    " run"
                )
            end = first + length
            bounds.append((first, end))
    if end > height * width:
        raise ImageError(
            f"its runs end at pixel {end}, but the image has {width} x {height} = {height * width} pixels;\n"
            "were the runs made for an image of another size, or is segmentation.runs not"
            f" {kind}?"
        )
    return bounds


def encode_runs(mask: NDArray[np.bool_], kind: Runs) -> str:
    """Return the run lengths of a mask (H, W), see `decode_runs`; without pixels "-1"."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    firsts, ends = edges[::2], edges[1::2]
    starts = firsts + 1 if kind == "absolute" else firsts - np.concatenate([[0], ends[:-1]])[: len(ends)]
    pairs = np.column_stack([starts, ends - firsts]).ravel().tolist()
    return " ".join(map(str, pairs)) or "-1"
