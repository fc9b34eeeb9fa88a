from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medmoco.data.augment.parameters import VolumeViewParameters
from medmoco.data.augment.volume_views import unchanged
from medmoco.data.augment.volume_warps import matrix_of, resized, warp
from medmoco.data.volume_io.volume import VolumeCanvas
from tests.helpers.made_volumes import make_canvas

SIZE = 40


def parameters(
    start: tuple[int, ...], extent: tuple[int, ...], *, degrees: tuple[float, ...] = (0, 0, 0), flips: str = ""
) -> VolumeViewParameters:
    base = unchanged([make_canvas((2, 2, 2))])
    return replace(
        base, start=np.array([start]), extent=np.array([extent]), angles=np.deg2rad([degrees]),
        mirrored=np.array([[axis in flips for axis in "xyz"]]),
    )  # fmt: skip


def made(canvas: VolumeCanvas, params: VolumeViewParameters, size: int = SIZE) -> np.ndarray:
    out = np.empty((size,) * 3, canvas.pixels.dtype)
    warp(canvas, params, 0, out)
    return out.astype(float)


def oracle(
    canvas: VolumeCanvas, params: VolumeViewParameters, size: int = SIZE, repeated: tuple[int, ...] = ()
) -> np.ndarray:
    """Trilinear interpolation in float64 with scipy; along some axes, the edges of the box are repeated."""
    start, extent = params.start[0], params.extent[0]
    spacing = np.diag(canvas.spacing)
    rotation = Rotation.from_euler("xyz", params.angles[0]).as_matrix()  # about x first
    flip = np.diag(np.where(params.mirrored[0], -1.0, 1.0))
    matrix = np.linalg.inv(spacing) @ rotation @ spacing @ flip @ np.diag(extent / size)
    offset = start + (extent - 1) / 2 - matrix @ np.full(3, (size - 1) / 2)
    volume = canvas.pixels.astype(float)
    for axis in repeated:
        margin = [(30, 30) if other == axis else (0, 0) for other in range(3)]
        box = np.clip(np.arange(-2, extent[axis] + 2), 0, extent[axis] - 1) + start[axis] + 30
        volume = np.take(np.pad(volume, margin), box, axis)
        offset[axis] += 2 - start[axis]
    shape = (size,) * 3
    return ndimage.affine_transform(volume, matrix, offset, shape, order=1, mode="grid-constant", prefilter=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("flips", ["", "x", "yz"])
@pytest.mark.parametrize("box", [((3, 5, 0), (40, 40, 40)), ((20, 0, 9), (33, 33, 33)), ((10, 2, 4), (50, 50, 50))])
def test_warp__crop_zoom_and_flip_equal_scipy(box: tuple, flips: str, dtype: type) -> None:
    canvas = make_canvas((70, 60, 55), dtype=dtype)
    params = parameters(*box, flips=flips)
    expected = oracle(canvas, params, repeated=(0, 1, 2))
    assert np.abs(made(canvas, params) - expected).max() <= 1.6  # rounded after each step


def test_warp__of_a_box_of_the_size_is_a_copy() -> None:
    canvas = make_canvas((70, 60, 55))
    np.testing.assert_array_equal(made(canvas, parameters((7, 3, 12), (40, 40, 40))), canvas.pixels[7:47, 3:43, 12:52])
    mirrored = made(canvas, parameters((7, 3, 12), (40, 40, 40), flips="y"))
    np.testing.assert_array_equal(mirrored, canvas.pixels[7:47, 3:43, 12:52][:, ::-1])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flips", ["y", "xz"])
@pytest.mark.parametrize(("spacing", "dtype"), [((1.0, 1.0, 1.0), np.uint8), ((0.7, 1.1, 3.0), np.uint16)])
def test_warp__rotation_about_an_axis_equals_scipy(axis: int, flips: str, spacing: tuple, dtype: type) -> None:
    canvas = make_canvas((70, 60, 66), spacing=spacing, dtype=dtype)
    degrees = tuple(20.0 * (axis == other) for other in range(3))
    params = parameters((12, 9, 8), (46, 46, 46), degrees=degrees, flips=flips)
    difference = (made(canvas, params) - oracle(canvas, params, repeated=(axis,))) * 255 / np.iinfo(dtype).max
    # Older versions of OpenCV place samples on a grid of 1/32 voxel.
    assert np.abs(difference).max() < 4
    assert np.sqrt((difference**2).mean()) < 0.6


@pytest.mark.parametrize(("spacing", "flips"), [((1.0, 1.0, 1.0), "x"), ((0.8, 0.8, 2.5), ""), ((2.0, 1.0, 1.0), "yz")])
@pytest.mark.parametrize("degrees", [(12, -9, 15), (-15, 15, 0), (80, 20, -35), (10, 95, 5), (20, 170, 100)])
def test_warp__rotation_about_several_axes_is_close_to_scipy(degrees: tuple, spacing: tuple, flips: str) -> None:
    """Away from the border of the canvas; on smooth volumes the order of interpolation makes little difference."""
    canvas = make_canvas((70, 70, 66), spacing=spacing, sigma=4)
    params = parameters((12, 13, 8), (46, 46, 46), degrees=degrees, flips=flips)
    difference = made(canvas, params) - oracle(canvas, params)
    white = replace(canvas, pixels=np.full_like(canvas.pixels, 255))
    inside = ndimage.binary_erosion(oracle(white, params) > 254.9, iterations=2, border_value=1)
    assert inside.mean() > 0.3
    assert np.abs(difference[inside]).max() < 3
    assert np.sqrt((difference[inside] ** 2).mean()) < 0.6  # rounding alone is 0.29
    assert np.sqrt((difference**2).mean()) < 4


@pytest.mark.parametrize("degrees", [(12, -9, 15), (70, 20, -35), (10, 95, 5), (0, 12, 170)])
def test_warp__rotations_are_exact_where_grey_levels_are_planes(degrees: tuple) -> None:
    x, y, z = np.ogrid[:80, :80, :80]
    canvas = VolumeCanvas((400 * x + 200 * y + 100 * z).astype(np.uint16), (1.0, 1.0, 1.0))
    params = parameters((28, 28, 28), (24, 24, 24), degrees=degrees, flips="z")
    # Off by at most half a step of the grid of 1/32 voxel that older versions of OpenCV have, and by rounding twice.
    assert np.abs(made(canvas, params) - oracle(canvas, params)).max() < 700 / 64 + 2


@pytest.mark.parametrize("degrees", [(0, 0, 0), (0, 0, 25), (25, 0, 0), (10, 20, 30)])
def test_warp__is_black_outside_the_canvas(degrees: tuple) -> None:
    canvas = VolumeCanvas(np.full((20, 90, 26), 200, np.uint8), (1.0, 1.0, 1.0))
    params = parameters((-10, 20, -7), (40, 40, 40), degrees=degrees)
    difference = made(canvas, params) - oracle(canvas, params)
    assert np.abs(difference[1:-1, 1:-1, 1:-1]).max() < (5 if np.count_nonzero(degrees) < 2 else 60)
    assert np.sqrt((difference**2).mean()) < 6
    assert made(canvas, params)[0, 0, 0] == 0
    assert made(canvas, params)[20, 20, 20] == 200


@pytest.mark.parametrize("degrees", [(0, 0, 0), (0, 0, 20), (0, 20, 0), (20, 20, 20)])
def test_warp__strong_shrinking_does_not_alias(degrees: tuple) -> None:
    """Voxels that alternate between black and white must become grey."""
    board = (np.indices((130, 130, 130)).sum(0) % 2 * 255).astype(np.uint8)
    view = made(VolumeCanvas(board, (1.0, 1.0, 1.0)), parameters((3, 8, 0), (121, 121, 121), degrees=degrees))
    assert np.abs(view[14:-14, 14:-14, 14:-14] - 127.5).max() <= 3


def test_warp__shrinking_is_the_average_of_the_voxels() -> None:
    canvas = make_canvas((100, 90, 160), sigma=0.5)
    params = parameters((4, 0, 0), (80, 80, 160))
    average = canvas.pixels[4:84, :80].astype(float).reshape(40, 2, 40, 2, 40, 4).mean((1, 3, 5))
    assert np.abs(made(canvas, params) - average).max() <= 0.51
    turned = made(canvas, replace(params, angles=np.array([[0, 0, 1e-9]])))
    assert np.abs(turned - average).max() <= 0.51
    turned = made(canvas, replace(params, angles=np.array([[1e-9, 0, 1e-9]])))
    assert np.abs(turned - average).max() <= 0.51


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_warp__takes_any_number_of_slices(axis: int) -> None:
    """OpenCV takes 128 channels at once; one slice alone has no channels at all."""
    for length, extent in ((300, 260), (1, 1)):
        shape = np.where(np.arange(3) == axis, length, 50)
        canvas = make_canvas(tuple(shape))
        extents = tuple(np.where(np.arange(3) == axis, extent, 30))
        degrees = tuple(10.0 * (np.arange(3) == axis))
        params = parameters(tuple((shape - extents) // 2), extents, degrees=degrees)
        difference = made(canvas, params, 132) - oracle(canvas, params, 132, repeated=(axis,))
        assert np.sqrt((difference**2).mean()) < 0.6


def test_matrix_of__maps_the_centre_of_the_view_to_that_of_the_box() -> None:
    params = parameters((3, 4, 5), (50, 40, 30), degrees=(10, 20, 30), flips="y")
    matrix, offset = matrix_of(params, 0, (1.0, 2.0, 3.0), SIZE)
    np.testing.assert_allclose(matrix @ np.full(3, 19.5) + offset, [27.5, 23.5, 19.5])
    lengths = np.linalg.norm(np.array([1.0, 2.0, 3.0])[:, None] * matrix, axis=0)  # mm
    np.testing.assert_allclose(lengths, [50 / 40, 2 * 40 / 40, 3 * 30 / 40])


@pytest.mark.parametrize("shape", [(20, 30, 25), (41, 22, 60)])
def test_resized__equals_scipy(shape: tuple[int, ...]) -> None:
    volume = make_canvas((30, 33, 37)).pixels
    points = [
        np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        for before, after in zip(volume.shape, shape, strict=True)
    ]
    expected = ndimage.map_coordinates(volume.astype(float), np.meshgrid(*points, indexing="ij"), order=1)
    assert np.abs(resized(volume.astype(np.float32), shape) - expected).max() < 0.01
    assert np.abs(resized(volume, shape) - expected).max() <= 1.6  # rounded after each step
