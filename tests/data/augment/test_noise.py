from __future__ import annotations

import numpy as np

from medmoco.data.augment.noise import add_noise, noise_tile, noise_windows
from medmoco.utils.rng import VIEW, uniform


def test_add_noise__has_the_strength_asked_for_and_differs_by_channel() -> None:
    made = []
    for channel in range(3):
        pixels = np.full((200, 200), 30000, np.uint16)
        add_noise(pixels, 0.02, np.array([5, 9]), channel)
        made.append(pixels.astype(float).ravel() - 30000)
        assert abs(made[-1].std() / 65535 - 0.02) < 0.001
    assert abs(np.corrcoef(made)[np.triu_indices(3, 1)]).max() < 0.02


def test_noise_windows__none_is_left_where_a_view_is_larger_than_the_tile() -> None:
    assert (noise_windows(224), noise_windows(1024), noise_windows(2000)) == (801, 1, 1)
    pixels = np.full((1100, 1100), 128, np.uint8)
    add_noise(pixels, 0.1, np.array([0, 0]), 2)
    assert pixels.std() > 15


def test_noise_tile__is_the_same_whatever_the_cpu() -> None:
    """Libraries differ in the last bits of log and cos; no value is so near to a half that they decide its rounding."""
    first, second = (uniform(VIEW, number, np.arange(1024 * 1024)) for number in range(2))
    exact = 128 + 32 * np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    assert np.abs(exact - np.floor(exact) - 0.5)[(exact > 0) & (exact < 255)].min() > 1e-7
    np.testing.assert_array_equal(noise_tile().ravel(), np.clip(np.floor(exact + 0.5), 0, 255))
