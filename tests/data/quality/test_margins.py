from __future__ import annotations

import cv2
import numpy as np
import pytest

from medmoco.data.image_io.intensity import GrayImage
from medmoco.data.quality.margins import N_BORDER, N_MARKS, margins
from tests.helpers.films import film


def split(pixels: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    found = margins(GrayImage(pixels, bits)).astype(int)
    assert found.shape == (N_BORDER + N_MARKS,) == (88,)
    return found[:N_BORDER], found[N_BORDER:]


@pytest.mark.parametrize("shape", [(256, 256), (90, 130), (700, 1100)])
def test_margins__show_a_frame_and_nothing_of_the_middle(shape: tuple[int, int]) -> None:
    pixels = film(1, *shape)
    border, marks = split(pixels)
    framed, changed = pixels.copy(), pixels.copy()
    depth = max(shape) // 16
    for edge in (np.s_[:depth], np.s_[-depth:], np.s_[:, :depth], np.s_[:, -depth:]):
        framed[edge] = 0
    assert split(framed)[0].max() < 0.2 * border.max()
    height, width = shape
    middle = np.s_[height // 4 : -height // 4, width // 4 : -width // 4]
    changed[middle] = 255 - changed[middle]
    np.testing.assert_array_equal(split(changed)[0], border)
    np.testing.assert_array_equal(split(changed)[1], marks)


def test_margins__count_letters_but_no_broad_structure() -> None:
    pixels = np.tile(np.linspace(40, 160, 512, dtype=np.uint8), (512, 1))
    assert not split(pixels)[1].any()
    written, bar = pixels.copy(), pixels.copy()
    cv2.putText(written, "PORTABLE", (10, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    bar[:40] = 255
    assert (split(written)[1] > 20).sum() in (2, 3)  # of the cells along the upper edge
    assert not split(bar)[1].any()


def test_margins__do_not_depend_on_depth_or_equal_channels() -> None:
    pixels = film(3, 300, 300)
    deep = pixels.astype(np.uint16) * 257
    assert abs(margins(GrayImage(deep, 16)).astype(int) - margins(GrayImage(pixels, 8))).max() <= 1
    colour = np.repeat(pixels[..., None], 3, 2)
    assert abs(margins(GrayImage(colour, 8)).astype(int) - margins(GrayImage(pixels, 8))).max() <= 1
