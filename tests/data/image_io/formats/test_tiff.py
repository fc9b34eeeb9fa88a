"""TIFF files written tag by tag: every layout shows what was written, upright, or is refused for what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_as_set, read_image
from medmoco.data.image_io.intensity import FIRST_OF_SEVERAL, LUMA, THUMBNAIL, GrayImage
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.detection.sizes import image_size
from medmoco.errors import ImageError
from tests.helpers.both import read_both
from tests.helpers.shipped import shipped
from tests.helpers.tiff_files import UPRIGHT, page_of, tiff

RANDOM = np.random.default_rng(0)
GRAY8 = RANDOM.integers(0, 256, (20, 30), np.uint8)
GRAY16 = RANDOM.integers(0, 65536, (20, 30), np.uint16)
COLOUR = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)


def saved(folder: Path, content: bytes) -> Path:
    (folder / "a.tif").write_bytes(content)
    return folder / "a.tif"


@settings(max_examples=120, deadline=None)
@given(
    orientation=st.integers(0, 9),
    deep=st.booleans(),
    big_endian=st.booleans(),
    deflated=st.booleans(),
    tile=st.sampled_from([0, 16]),
    photometric=st.sampled_from([0, 1]),
    by_xmp=st.booleans(),
    page=st.sampled_from([1, 2]),
)
def test_read_image__every_layout_is_upright(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, deep: bool, big_endian: bool, deflated: bool, tile: int,
    photometric: int, by_xmp: bool, page: int,
) -> None:  # fmt: skip
    order = ">" if big_endian else "<"
    rows = (GRAY16 if deep else GRAY8).astype(f"{order}u{1 + deep}")
    tags: dict[int, Any] = {262: photometric}
    tags |= {700: f'<x tiff:Orientation="{orientation}"/>'.encode()} if by_xmp else {274: orientation}
    pages = [page_of(rows, deflated=deflated, tile=tile, tags=tags)]
    if page == 2:
        pages.insert(0, page_of(np.zeros((20, 30), rows.dtype)))
    file = saved(tmp_path_factory.getbasetemp(), tiff(*pages, order=order))
    found = read_both(file, frame=page)
    if isinstance(found, str):  # Pillow does not know it
        assert deep
        assert big_endian
        assert photometric == 0
        assert "16-bit unsigned samples (big-endian, WhiteIsZero" in found
        return
    white = 65535 if deep else 255
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(rows.astype(int))
    np.testing.assert_array_equal(found.pixels, white - expected if photometric == 0 else expected)
    assert image_size(file, page, DEFAULT_LIMITS) == (*found.pixels.shape, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(page_of(GRAY8.view(np.int8))), "8-bit signed samples (little-endian, BlackIsZero, uncompressed)"),
        (tiff(page_of(GRAY8.view(np.int8), deflated=True), order=">"), "8-bit signed samples (big-endian"),
        (tiff(page_of(GRAY16.view(np.int16), tile=16)), "16-bit signed samples"),
        (tiff(page_of(GRAY8.view(np.int8), tags={262: 0})), "8-bit signed samples (little-endian, WhiteIsZero"),
        (tiff(page_of(COLOUR.view(np.int8))), "3 x 8-bit signed"),
        (tiff(page_of(GRAY8.astype(np.float32))), "32-bit floating-point samples"),
        (tiff(page_of(GRAY8.astype(np.uint32))), "32-bit unsigned samples"),
        (tiff(page_of(COLOUR.astype(np.uint16))), "3 x 16-bit unsigned samples"),
        (tiff(page_of(np.dstack([COLOUR, GRAY8]), tags={262: 5})), "CMYK"),
        (tiff(page_of(COLOUR, tags={262: 8})), "CIELab"),
        (tiff(page_of(GRAY8, tags={259: 34712})), "JPEG 2000"),
        (tiff(page_of(GRAY8, tags={339: 9})), "8-bit unknown samples"),
        (tiff(([bytes(900)], {**page_of(GRAY8)[1], 258: 12}), order=">"), "12-bit unsigned samples (big-endian"),
        (tiff(page_of(np.dstack([GRAY8, GRAY8]), tags={262: 1, 338: 1})), "2 x 8-bit"),
    ],
)  # fmt: skip
def test_read_image__names_a_layout_that_is_not_read(tmp_path: Path, content: bytes, words: str) -> None:
    found = read_both(saved(tmp_path, content))
    assert isinstance(found, str)
    assert words in found
    assert "damaged" not in found
    assert "convert it" in found


@pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 13, reason="older versions of Pillow refuse such files")
def test_read_image__extra_samples(tmp_path: Path) -> None:
    beside = np.dstack([GRAY8, GRAY8[::-1]])
    unspecified = read_both(saved(tmp_path, tiff(page_of(beside, tags={262: 1, 338: 0}))))
    assert isinstance(unspecified, GrayImage)
    np.testing.assert_array_equal(unspecified.pixels, GRAY8)
    for rows, photometric in ((beside, 1), (np.dstack([COLOUR, GRAY8]), 2)):
        alpha = read_both(saved(tmp_path, tiff(page_of(rows, tags={262: photometric, 338: 2}))))
        assert "transparent" in str(alpha)


@pytest.mark.parametrize("tile", [0, 16])
def test_read_image__rows_that_are_too_short(tmp_path: Path, tile: int) -> None:
    """What lies behind them in the file is not part of the image."""
    parts, tags = page_of(GRAY8, tile=tile)
    parts[-1] = parts[-1][:-2]
    found = read_both(saved(tmp_path, tiff((parts, tags)) + bytes(2000)))
    assert "shorter than its image" in str(found)


def test_read_image__several_pages(tmp_path: Path) -> None:
    same, small = tiff(page_of(GRAY8), page_of(GRAY8)), page_of(GRAY8[:10, :15])
    marked = page_of(GRAY8[:10], tags={254: 1})
    for content, frame, notices in (
        (tiff(page_of(GRAY8)), 1, ()),
        (same, 1, (FIRST_OF_SEVERAL,)),
        (same, 2, ()),
        (tiff(marked, page_of(GRAY8)), 1, (THUMBNAIL,)),
        (tiff(small, page_of(GRAY8)), 1, (THUMBNAIL,)),
        (tiff(page_of(GRAY8), small), 1, (FIRST_OF_SEVERAL,)),
        (tiff(small, page_of(GRAY8)), 2, ()),
    ):
        found = read_both(saved(tmp_path, content), frame=frame)
        assert isinstance(found, GrayImage)
        assert found.notices == notices
    assert "frame 3 is requested, but the file has 2" in str(read_both(saved(tmp_path, same), frame=3))


def test_read_image__colour_is_upright(tmp_path: Path) -> None:
    found = read_both(saved(tmp_path, tiff(page_of(COLOUR, tags={274: 8}))))
    assert isinstance(found, GrayImage)
    assert found.notices == (LUMA,)
    assert np.abs(found.pixels - UPRIGHT[8](COLOUR) @ [0.299, 0.587, 0.114]).max() <= 0.51


def bands_of(file: Path, count: int) -> NDArray[Any]:
    """Levels of a file of bands, having made sure that both ways of reading agree."""
    data = DataSettings(manifest=Path(), root=".", channels=count, band_ranges=((-200, 70_000),))
    own = read_as_set(file, 1, data).pixels
    theirs, _ = shipped().bands(file, {"channels": count, "scale": "linear", "ranges": [[-200, 70_000]]})
    np.testing.assert_array_equal(theirs, own)
    return own.reshape(*own.shape[:2], count)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", ">i2", "<i4", "<f4", ">f4"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_as_set__pages_as_bands(tmp_path: Path, dtype: str, orientation: int) -> None:
    planes = [(GRAY16.astype(int) % 256 - 128 * (dtype[-2] == "i") + step).astype(dtype) for step in range(3)]
    order = ">" if dtype.startswith(">") else "<"
    file = saved(tmp_path, tiff(*(page_of(plane, tags={274: orientation}) for plane in planes), order=order))
    expected = [UPRIGHT[orientation](plane.astype(float) + 200) / 70_200 * 65535 for plane in planes]
    assert np.abs(bands_of(file, 3) - np.stack(expected, axis=-1)).max() <= 0.51


def test_read_as_set__unsigned_32_bits_and_white_is_zero(tmp_path: Path) -> None:
    large = np.full((20, 30), 3_000_000_000, np.uint32)
    assert bands_of(saved(tmp_path, tiff(page_of(large))), 1).min() == 65535
    inverted = bands_of(saved(tmp_path, tiff(page_of(GRAY16, tags={262: 0}))), 1)[..., 0]
    assert np.abs(inverted - (65535 - GRAY16 + 200.0) / 70_200 * 65535).max() <= 0.51


@pytest.mark.parametrize(
    "content",
    [
        tiff(page_of(COLOUR.astype(np.uint16))),  # which Pillow cuts to 8 bits
        tiff(page_of(np.dstack([COLOUR, GRAY8]), tags={338: 0})),  # of which it leaves one out
        tiff(page_of(COLOUR.view(np.int8))),
    ],
)
def test_read_as_set__refuses_samples_that_would_be_lost(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImageError, match="is not supported;\nsave each band"):
        bands_of(saved(tmp_path, content), 3)


@pytest.mark.parametrize("big", [False, True])
def test_read_image__counts_pages_before_anything_is_decoded(tmp_path: Path, big: bool) -> None:
    page = Image.fromarray(GRAY8)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 2, big_tiff=big, description="x" * 99)
    assert isinstance(read_both(tmp_path / "a.tif", frame=3), GrayImage)
    with pytest.raises(ImageError, match=r"3 frames exceed data\.max_frames = 2"):
        read_image(tmp_path / "a.tif", limits=Limits(max_frames=2))
    content = (tmp_path / "a.tif").read_bytes()
    assert "directory that cannot be read" in str(read_both(saved(tmp_path, content[:-760])))


TAGS = {
    254: [0, 1, 2, 4], 256: [0, 1, 29, 31, 60_000], 257: [0, 1, 19, 21, 60_000],
    258: [1, 4, 8, 12, 16, 32, [8, 8], [8, 16]],
    259: [1, 2, 4, 5, 7, 8, 32773, 34712, 50000, 99], 262: [0, 1, 2, 3, 5, 6, 8, 99], 266: [1, 2, 3], 274: [0, 1, 6, 9],
    277: [0, 1, 2, 3, 4], 278: [0, 1, 7, 2**32 - 1], 279: [0, 1, 100, 2**32 - 1], 284: [1, 2, 3], 317: [1, 2, 3],
    322: [0, 16, 60_000], 338: [0, 1, 2, 99], 339: [1, 2, 3, 4, 5, 9, [1, 2]],
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(TAGS)), st.integers(0, 9), min_size=1, max_size=3),
    deep=st.booleans(), deflated=st.booleans(), big_endian=st.booleans(), count=st.integers(1, 3),
)  # fmt: skip
def test_read_image__any_tags_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[int, int], deep: bool, deflated: bool, big_endian: bool,
    count: int,
) -> None:  # fmt: skip
    """Whatever the tags say, training and prepare.py agree, also of bands, and on the size before decoding."""
    order = ">" if big_endian else "<"
    tags = {tag: TAGS[tag][number % len(TAGS[tag])] for tag, number in changes.items()}
    rows = (GRAY16 if deep else GRAY8).astype(f"{order}u{1 + deep}")
    file = saved(tmp_path_factory.getbasetemp(), tiff(page_of(rows, deflated=deflated, tags=tags), order=order))
    found = read_both(file)
    if isinstance(found, GrayImage):
        assert image_size(file, 1, DEFAULT_LIMITS)[:2] == found.pixels.shape
    try:
        bands_of(file, count)
    except ImageError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            shipped().bands(file, {"channels": count, "scale": "linear", "ranges": [[-200, 70_000]]})
