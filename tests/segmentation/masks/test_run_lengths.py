from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medmoco.datasets.radiographs.siim_pneumothorax import SIDE, mask_box
from medmoco.errors import ImageError
from medmoco.segmentation.masks.run_lengths import Runs, decode_runs, encode_runs, looks_like_runs

KINDS: tuple[Runs, ...] = ("absolute", "relative")


def oracle(text: str, height: int, width: int, kind: Runs) -> NDArray[np.bool_]:
    """Walk along the runs pixel by pixel, down the columns from the left."""
    mask = np.zeros((height, width), bool)
    at, words = 0, [int(word) for word in text.split()]
    for start, length in zip(words[::2], words[1::2], strict=True):
        at = start - 1 if kind == "absolute" else at + start
        for _ in range(length):
            mask[at % height, at // height] = True
            at += 1
    return mask


def test_decode_runs__known_texts() -> None:
    # 3 high, 4 wide; pixels count down the columns.
    expected = [[0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert decode_runs("2 2 7 2 12 1", (3, 4), "absolute").astype(int).tolist() == expected
    assert decode_runs("1 2 3 2 3 1", (3, 4), "relative").astype(int).tolist() == expected


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))), st.sampled_from(KINDS))
def test_runs__round_trip_as_a_walk_along_the_pixels(mask: NDArray[np.bool_], kind: Runs) -> None:
    text = encode_runs(mask, kind)
    np.testing.assert_array_equal(decode_runs(text, mask.shape, kind), mask)
    if mask.any():
        np.testing.assert_array_equal(oracle(text, mask.shape[0], mask.shape[1], kind), mask)
    else:
        assert text == "-1"
    assert looks_like_runs(text)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_runs__several_masks_of_an_image_are_joined(kind: Runs) -> None:
    masks = np.random.default_rng(0).random((3, 6, 5)) < 0.3
    text = " | ".join([*(encode_runs(mask, kind) for mask in masks), "-1"])
    np.testing.assert_array_equal(decode_runs(text, (6, 5), kind), masks.any(axis=0))


def test_decode_runs__without_pixels() -> None:
    for text in ("-1", " -1 ", "-1|-1", "1 0"):
        assert not decode_runs(text, (3, 4), "absolute").any()
    assert not decode_runs("0 0", (3, 4), "absolute").any()
    assert decode_runs("3 0 2 1", (3, 4), "relative").ravel(order="F").nonzero()[0].tolist() == [5]


def test_decode_runs__first_and_last_pixel() -> None:
    for kind, text in zip(KINDS, ("1 1 12 1", "0 1 10 1"), strict=True):
        assert np.argwhere(decode_runs(text, (3, 4), kind)).tolist() == [[0, 0], [2, 3]]


def test_decode_runs__box_is_that_of_the_preparation_of_siim() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = np.zeros((SIDE, SIDE), bool)
        top, left = rng.integers(0, SIDE - 90, 2)
        mask[top : top + 80, left : left + 60] = rng.random((80, 60)) < 0.5
        decoded = decode_runs(encode_runs(mask, "relative"), (SIDE, SIDE), "relative")
        rows, columns = np.nonzero(decoded)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert mask_box(encode_runs(mask, "relative")) == box


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("1 2 3", "absolute", "the cell has 3 numbers, not pairs"),
        ("1 2|", "absolute", "the cell has 0 numbers, not pairs"),
        ("1 secret", "absolute", "other text than numbers;\n.*remove segmentation.runs if"),
        ("masks/secret.png", "relative", "other text than numbers"),
        ("1 -1", "relative", "other text than numbers"),
        ("-1 1 2", "relative", "other text than numbers"),
        ("1.0 2", "absolute", "other text than numbers"),
        ("１ 2", "absolute", "other text than numbers"),
        ("9" * 5000 + " 1", "absolute", "other text than numbers"),
        ("11 3", "absolute", r"end at pixel 13, but the image has 4 x 3 = 12 pixels;\n.* not absolute\?"),
        ("10 3", "relative", r"end at pixel 13, .*segmentation\.runs not relative\?"),
        ("1 2 3 4 2 1", "absolute", "overlap, are out of order or start at 0"),
        ("8 1 2 2", "absolute", r"set segmentation\.runs=relative"),
        ("0 2", "absolute", "start at 0"),
    ],
)  # fmt: skip
def test_decode_runs__wrong_texts_are_refused_and_not_quoted(text: str, kind: Runs, message: str) -> None:
    with pytest.raises(ImageError, match=f"(?s){message}") as refused:
        decode_runs(text, (3, 4), kind)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 4


def test_looks_like_runs__is_no_path() -> None:
    assert all(map(looks_like_runs, ("1 2", "-1", "1 2|7 3", "387620 23 996 33")))
    assert not any(map(looks_like_runs, ("masks/1.png", "12", "a 1 2", "")))
