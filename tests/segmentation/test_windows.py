from __future__ import annotations

import numpy as np
import pytest
import torch

from medmoco.segmentation.windows import blended, number_of_windows, padded


@pytest.mark.parametrize(("shape", "before"), [((5, 8), (1, 0)), ((4, 9, 11), (2, 0, 0)), ((12, 8, 3), (0, 0, 2))])
def test_padded__is_black_around_the_image(shape: tuple[int, ...], before: tuple[int, ...]) -> None:
    views = np.random.default_rng(0).integers(1, 256, (1, 2, *shape)).astype(np.uint8)
    larger, inside = padded(views, 8)
    assert larger.dtype == views.dtype
    assert larger.shape[2:] == tuple(max(8, side) for side in shape)
    assert tuple(part.start for part in inside) == before
    np.testing.assert_array_equal(larger[(slice(None), slice(None), *inside)], views)
    assert larger.sum() == views.sum()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_blended__what_each_window_says_of_its_own_voxels(dimensions: int) -> None:
    images = torch.randn((2, 1, *(19, 23, 17)[:dimensions]), generator=torch.Generator().manual_seed(0))
    sizes = set()

    def predict(windows: torch.Tensor) -> torch.Tensor:
        sizes.add(tuple(windows.shape[2:]))
        return torch.cat([windows, 2 * windows], 1)

    found = blended(predict, images, 8, 0.5, 3)
    np.testing.assert_allclose(found, torch.cat([images, 2 * images], 1), rtol=1e-4, atol=1e-6)
    assert sizes == {(8,) * dimensions}


def test_blended__the_centre_of_a_window_counts_most() -> None:
    seen = []

    def predict(windows: torch.Tensor) -> torch.Tensor:
        seen.append(len(windows))
        return torch.full_like(windows, float(len(seen)))

    found = blended(predict, torch.zeros(1, 1, 8, 12), 8, 0.5, 1)[0, 0]
    assert seen == [1, 1]
    assert found[0, 0] == 1
    assert found[0, -1] == 2
    shared = found[4, 4:8]  # seen by both windows
    assert (np.diff(shared) > 0).all()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("sides", [(8, 8), (9, 30), (8, 12, 17)])
def test_number_of_windows__is_what_blended_predicts(sides: tuple[int, ...], overlap: float) -> None:
    seen = []

    def predict(windows: torch.Tensor) -> torch.Tensor:
        seen.append(len(windows))
        return windows

    blended(predict, torch.zeros(1, 1, *sides), 8, overlap, 5)
    assert sum(seen) == number_of_windows(sides, 8, overlap)
