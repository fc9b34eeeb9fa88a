from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medmoco.data.image_io.images import read_image
from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.errors import ImageError
from medmoco.segmentation.masks.mask_values import stored_numbers
from tests.helpers.tiff_files import UPRIGHT, page_of, tiff

RANDOM = np.random.default_rng(0)


def saved(folder: Path, content: bytes) -> Path:
    (folder / "a.png").write_bytes(content)  # the type is that of the content
    return folder / "a.png"


def packed(rows: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return rows of small numbers as bytes, each row padded. Source: TIFF 6.0, section 3."""
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in rows.tolist()]
    lines = [line + "0" * (-len(line) % 8) for line in lines]
    return np.array([[int(line[at : at + 8], 2) for at in range(0, len(line), 8)] for line in lines], np.uint8)


def few_bits(rows: NDArray[Any], bits: int, **tags: Any) -> bytes:
    data, own = page_of(packed(rows, bits))
    return tiff((data, {**own, 256: rows.shape[1], 258: [bits], **tags.get("tags", {})}))


@settings(max_examples=60, deadline=None)
@given(
    orientation=st.integers(0, 9),
    deep=st.booleans(),
    big_endian=st.booleans(),
    deflated=st.booleans(),
    tile=st.sampled_from([0, 16]),
    photometric=st.sampled_from([0, 1]),
)
def test_stored_numbers__gray_tiff_of_any_layout(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, deep: bool, big_endian: bool, deflated: bool, tile: int,
    photometric: int,
) -> None:  # fmt: skip
    """Neither display polarity nor byte order changes numbers, and the mask is turned as its image."""
    order = ">" if big_endian else "<"
    rows = RANDOM.integers(0, 65536 if deep else 256, (20, 30)).astype(f"{order}u{1 + deep}")
    page = page_of(rows, deflated=deflated, tile=tile, tags={262: photometric, 274: orientation})
    file = saved(tmp_path_factory.getbasetemp(), tiff(page, order=order))
    if deep and big_endian and photometric == 0:  # as of images
        with pytest.raises(Unreadable, match="WhiteIsZero"):
            stored_numbers(file, DEFAULT_LIMITS)
        return
    found = stored_numbers(file, DEFAULT_LIMITS)
    np.testing.assert_array_equal(found, UPRIGHT.get(orientation, UPRIGHT[1])(rows))
    assert found.shape == read_image(file).pixels.shape


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_stored_numbers__tiff_of_few_bits(tmp_path: Path, bits: int, photometric: int) -> None:
    rows = RANDOM.integers(0, 2**bits, (5, 13))
    colours = RANDOM.integers(0, 65536, 3 * 2**bits).tolist()
    tags = {262: photometric, **({320: colours} if photometric == 3 else {})}
    found = stored_numbers(saved(tmp_path, few_bits(rows, bits, tags=tags)), DEFAULT_LIMITS)
    np.testing.assert_array_equal(found, rows)


def test_stored_numbers__indices_of_the_palette_of_a_tiff(tmp_path: Path) -> None:
    rows = RANDOM.integers(0, 256, (20, 30), np.uint8)
    content = tiff(page_of(rows, tags={262: 3, 320: RANDOM.integers(0, 65536, 768).tolist()}))
    np.testing.assert_array_equal(stored_numbers(saved(tmp_path, content), DEFAULT_LIMITS), rows)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_stored_numbers__tiff_of_pillow(tmp_path: Path, compression: str | None) -> None:
    rows = RANDOM.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(rows).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(stored_numbers(tmp_path / "a.tif", DEFAULT_LIMITS), rows)


GRAY = RANDOM.integers(0, 256, (20, 30), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(page_of(GRAY), page_of(GRAY)), "the TIFF file has 2 pages; save the mask of this image as a file"),
        (
            tiff(page_of(np.stack([GRAY] * 3, -1))),
            "3 x 8-bit unsigned samples .*RGB.* not supported;\nsave the mask as",
        ),
        (tiff(page_of(GRAY.astype(np.float32))), "32-bit floating-point samples"),
        (tiff(page_of(GRAY.astype(np.int16))), "16-bit signed samples"),
        (tiff(page_of(GRAY.astype(np.uint32))), "32-bit unsigned samples"),
        (tiff(page_of(GRAY, tags={257: 40})), "shorter than its image"),
        (tiff(page_of(GRAY))[:300], "cannot be (decoded|read)"),
    ],
)
def test_stored_numbers__tiff_that_is_no_mask(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=f"(?s){words}") as refused:
        stored_numbers(saved(tmp_path, content), DEFAULT_LIMITS)
    assert str(tmp_path) not in str(refused.value)


def test_stored_numbers__a_lossy_tiff_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(Unreadable, match="its compression may have changed values"):
        stored_numbers(tmp_path / "a.tif", DEFAULT_LIMITS)


def test_stored_numbers__limits_are_those_of_images(tmp_path: Path) -> None:
    file = saved(tmp_path, tiff(page_of(GRAY)))
    with pytest.raises(ImageError, match=r"30 x 20 pixels exceed data\.max_pixels = 500"):
        stored_numbers(file, Limits(max_pixels=500))
