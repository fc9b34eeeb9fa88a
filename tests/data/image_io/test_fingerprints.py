"""Fingerprints against plain loops, on made films, and on real films beside their resized copies."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medmoco.data.image_io import fingerprints
from medmoco.data.image_io.fingerprints import CELLS, NEAR, canvas_digest, near_duplicates, pattern, pixel_digest
from medmoco.data.image_io.images import Canvas, read_image, to_canvas
from medmoco.data.image_io.intensity import GrayImage
from tests.helpers.films import EDITS, edited, film


def pairs_of(patterns: NDArray[np.uint8], exhaustive: int = 4096) -> list[tuple[int, int]]:
    found = near_duplicates(patterns, np.arange(len(patterns)), exhaustive)
    return [(int(one), int(other)) for pairs in found for one, other in pairs]


def test_pixel_digest__is_of_the_pixels_whatever_the_file(tmp_path: Path) -> None:
    pixels = film(1)
    for kind in ("png", "tif", "bmp.png"):
        Image.fromarray(pixels).save(tmp_path / f"film.{kind}", compress_level=1 if kind == "png" else 9)
    assert (tmp_path / "film.png").read_bytes() != (tmp_path / "film.bmp.png").read_bytes()
    digests = {pixel_digest(read_image(tmp_path / f"film.{kind}").pixels) for kind in ("png", "tif", "bmp.png")}
    assert len(digests) == 1
    assert len(digests.pop()) == 32


def test_pixel_digest__shape_depth_and_every_pixel_count() -> None:
    pixels = film(1, 64, 48)
    changed = pixels.copy()
    changed[-1, -1] ^= 1
    bright = np.full((4, 4), 257, np.uint16)
    alike = [pixels, changed, pixels.reshape(48, 64), bright, bright.view(np.uint8), bright.astype(np.uint8)]
    assert len({pixel_digest(each) for each in alike}) == len(alike)
    assert pixel_digest(pixels[:, ::2]) == pixel_digest(pixels[:, ::2].copy())  # a view with strides


def test_canvas_digest__leaves_out_the_padding_and_what_is_constant() -> None:
    canvas = to_canvas(GrayImage(film(1, 96, 60), 8, ()), 48, 8)
    padded = Canvas(np.pad(canvas.pixels, ((0, 3), (0, 3)), constant_values=9), canvas.height, canvas.width)
    assert canvas_digest(canvas) == canvas_digest(padded) != b""
    assert canvas_digest(to_canvas(GrayImage(np.full((30, 20), 7, np.uint8), 8, ()), 48, 8)) == b""


@pytest.mark.parametrize("shape", [(32, 32), (96, 64), (1300, 700), (20, 500)])
def test_pattern__is_the_rank_of_every_cell(shape: tuple[int, int]) -> None:
    pixels = film(2, *shape)
    pixels[: shape[0] // 4] = 0  # ties
    ranks = pattern(pixels).astype(int)
    assert ranks.shape == (CELLS**2,)
    if shape == (32, 32):  # a cell is a pixel
        for at, value in enumerate(pixels.ravel()):
            below = sum(other < value for other in pixels.ravel())
            equal = sum(other == value for other in pixels.ravel())
            assert ranks[at] == int((below + equal / 2) * 256 / CELLS**2)
    assert ranks.max() > 250
    assert len(set(ranks[: CELLS * (CELLS // 4 - 1)])) == 1  # the black quarter


def test_near_duplicates__are_the_edited_copies_and_nothing_else() -> None:
    originals = [film(seed) for seed in range(120)]
    copies = [edited(originals[at], how) for at, how in enumerate(EDITS)]
    patterns = np.array([pattern(pixels) for pixels in originals + copies])
    expected = {(at, len(originals) + at) for at in range(len(EDITS))}
    found = pairs_of(patterns)
    assert set(found) == expected
    assert len(found) == len(expected)
    ranks = np.corrcoef(patterns)
    assert set(zip(*np.nonzero(np.triu(ranks >= NEAR, 1)), strict=True)) == expected


def test_near_duplicates__by_hash_are_those_of_every_pair() -> None:
    patterns = np.array([pattern(film(seed // 3)) for seed in range(1500)])
    noise = np.random.default_rng(0).normal(0, 6, patterns.shape)
    noise[::3] *= 4  # some copies are near the threshold
    patterns = np.clip(patterns + noise, 0, 255).astype(np.uint8)
    every = pairs_of(patterns)
    by_hash = pairs_of(patterns, exhaustive=0)
    assert len(set(by_hash)) == len(by_hash)
    assert set(by_hash) <= set(every)
    assert len(by_hash) >= 0.99 * len(every) > 400


@pytest.mark.parametrize("exhaustive", [0, 4096])
def test_near_duplicates__only_of_those_asked_about(exhaustive: int) -> None:
    originals = [film(seed) for seed in range(40)]
    patterns = np.array([pattern(pixels) for pixels in [*originals, *(edited(pixels, "jpeg") for pixels in originals)]])
    which = np.array([70, *range(1, 31), 41, 0])
    found = [pair for pairs in near_duplicates(patterns, which, exhaustive) for pair in pairs.tolist()]
    assert sorted(found) == [[0, 30], [1, 31]]  # 70 is a copy of 30, and 41 of 1; 40, a copy of 0, was not asked about


def test_near_duplicates__images_without_contrast_are_like_none() -> None:
    blank = np.full((1200, 1200), 9, np.uint8)
    blank[0, 0] = 10  # not constant, but for its pattern
    assert pairs_of(np.array([pattern(blank)] * 3)) == []


def test_candidates__are_those_of_a_plain_loop_each_once() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, 60, np.uint64)
    flipped = hashes[:, None] ^ (np.uint64(1) << generator.integers(0, 63, (60, 9)).astype(np.uint64))
    hashes = np.concatenate([hashes, np.bitwise_xor.reduce(np.stack([hashes, *flipped.T[:3]]), axis=0), *flipped.T[:2]])
    hashes = np.concatenate([hashes, hashes[:5], hashes[:1], hashes[:1]])
    expected = set()
    for one in range(len(hashes)):
        for other in range(one + 1, len(hashes)):
            differing = int(hashes[one] ^ hashes[other])
            bands = [(differing >> 21 * band & 0x1FFFFF).bit_count() for band in range(3)]
            if min(bands) <= 1 and sum(bands) <= 8:
                expected.add((one, other))
    found = [tuple(pair) for pairs in fingerprints._candidates(hashes) for pair in pairs.tolist()]
    assert sorted(found) == sorted(expected)
    assert len(expected) > 200


def test_slices__cut_long_work_into_pieces() -> None:
    lengths = np.array([0, 3, 9, 1, 1, 0, 4])
    pieces = list(fingerprints._slices(lengths, most=5))
    assert pieces[0][0] == 0
    assert pieces[-1][1] == len(lengths)
    assert all(one[1] == other[0] for one, other in pairwise(pieces))
    assert max(lengths[start:stop].sum() for start, stop in pieces) <= 5 + 9
    assert list(fingerprints._slices(np.zeros(0, np.int64))) == []


def films_of(folder: Path, split: str) -> dict[str, NDArray[np.uint8]]:
    with (folder / f"{split}.csv").open() as file:
        paths = [row["Path"] for row in csv.DictReader(file)]
    return {path: pattern(read_image(folder / split / path).pixels) for path in paths}


def test_near_duplicates__real_films_and_their_resized_copies(shared: Path) -> None:
    """The 151 larger test films are 151 of the 600 small ones, squeezed and encoded anew; no other pair is alike."""
    small = films_of(shared / "data/cxr_dev", "test")
    large = films_of(shared / "data/cxr_dev_native", "test")
    patterns = np.array([*small.values(), *large.values()])
    assert (len(small), len(large)) == (600, 151)
    copies = {(list(small).index(path), len(small) + at) for at, path in enumerate(large) if path in small}
    assert len(copies) > 50
    assert set(pairs_of(patterns)) == set(pairs_of(patterns, exhaustive=0)) == copies
