from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import ndimage

from medmoco.config import ViewSettings
from medmoco.config.views import VOLUME_RECIPES
from medmoco.data.augment.noise import noise_windows
from medmoco.data.augment.parameters import VolumeViewParameters
from medmoco.data.augment.volume_views import draw, render, unchanged, whole_view, windows
from medmoco.data.volume_io.volume import VolumeCanvas
from tests.helpers.made_volumes import make_canvas

PLAIN = dict(
    recipe="ct", flip_probability=0.0, rotation=0.0, jitter_probability=0.0, blur_probability=0.0,
    noise_probability=0.0, zoom=[1.0, 1.0],
)  # fmt: skip


def recipe(name: str, size: int = 24, **more: object) -> ViewSettings:
    return ViewSettings(**{"recipe": name, **VOLUME_RECIPES[name], "size": size, **more})


def shaped(*shape: int, slice_axis: int = 2) -> VolumeCanvas:
    """A canvas without memory, for draws alone."""
    return VolumeCanvas(np.broadcast_to(np.uint8(0), shape), (1.0, 1.0, 1.0), slice_axis)


def drawn(
    settings: ViewSettings, canvases: list[VolumeCanvas], samples: list[int], *, epoch: int = 0, view: int = 0
) -> VolumeViewParameters:
    return draw(settings, canvases, seed=5, epoch=epoch, samples=np.array(samples), view=view)


def make_views(settings: ViewSettings, canvases: list[VolumeCanvas], samples: list[int], **more: int) -> np.ndarray:
    return render(settings, canvases, [drawn(settings, canvases, samples, **more)])[0][:, 0]


def shared_volume(a: VolumeViewParameters, b: VolumeViewParameters) -> np.ndarray:
    """Share of the smaller box that the other has too, (B,)."""
    low, high = np.maximum(a.start, b.start), np.minimum(a.start + a.extent, b.start + b.extent)
    smaller = np.minimum(a.extent.prod(1), b.extent.prod(1))
    return np.maximum(high - low, 0).prod(1) / smaller


@pytest.mark.parametrize("axes", ["slice", "all"])
@pytest.mark.parametrize("name", sorted(VOLUME_RECIPES))
def test_render__a_view_depends_on_its_own_sample_only(name: str, axes: str) -> None:
    settings = recipe(name, rotation_axes=axes)
    canvases = [make_canvas((40 + seed, 36, 30), seed=seed, slice_axis=seed % 3) for seed in range(6)]
    samples = [10, 11, 12, 13, 14, 15]
    for view in (0, 1):
        together = make_views(settings, canvases, samples, view=view)
        assert together.shape == (6, 24, 24, 24)
        alone = make_views(settings, [canvases[3]], [13], view=view)
        reversed_order = make_views(settings, canvases[::-1], samples[::-1], view=view)
        np.testing.assert_array_equal(together[3], alone[0])
        np.testing.assert_array_equal(together, reversed_order[::-1])


def test_render__makes_sets_of_views_of_some_canvases() -> None:
    settings = recipe("ct")
    canvases = [make_canvas((40, 36, 30), seed=seed) for seed in range(3)]
    places = [np.array([0, 2]), np.array([1])]
    params = [drawn(settings, [canvases[i] for i in place], place.tolist()) for place in places]
    first, second = render(settings, canvases, params, places)
    assert first.shape == (2, 1, 24, 24, 24)
    assert second.shape == (1, 1, 24, 24, 24)
    np.testing.assert_array_equal(
        np.concatenate([first[:1], second, first[1:]])[:, 0], make_views(settings, canvases, [0, 1, 2])
    )


def test_render__differs_by_view_epoch_and_sample() -> None:
    settings, canvas = recipe("mr"), make_canvas((40, 36, 30))
    base = make_views(settings, [canvas], [0])
    for samples, other in (([0], {"view": 1}), ([0], {"epoch": 1}), ([1], {})):
        assert (make_views(settings, [canvas], samples, **other) != base).mean() > 0.5


def test_render__reads_only_the_part_that_a_view_needs() -> None:
    """As from a pack, which reads a part when it is indexed by three slices."""

    class Recorder:
        dtype = np.dtype(np.uint8)
        shape = (90, 80, 70)
        read = 0

        def __getitem__(self, parts: tuple[slice, slice, slice]) -> np.ndarray:
            made = whole[parts]
            self.read = max(self.read, made.size)
            return made

    whole = make_canvas(Recorder.shape).pixels
    for axes in ("slice", "all"):
        settings, recorder = recipe("ct", rotation_axes=axes), Recorder()
        lazy = VolumeCanvas(recorder, (1.0, 1.0, 1.0))
        np.testing.assert_array_equal(
            make_views(settings, [lazy] * 4, [0, 1, 2, 3]),
            make_views(settings, [replace(lazy, pixels=whole)] * 4, [0, 1, 2, 3]),
        )
        assert 0 < recorder.read < 45**3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_render__identity_is_exact(dtype: type) -> None:
    canvas = make_canvas((24, 24, 24), dtype=dtype)
    np.testing.assert_array_equal(make_views(ViewSettings(size=24, **PLAIN), [canvas], [0])[0], canvas.pixels)
    (view,) = render(ViewSettings(size=24, **PLAIN), [canvas], [unchanged([canvas])])
    np.testing.assert_array_equal(view[0, 0], canvas.pixels)


@pytest.mark.parametrize("axis", range(3))
def test_render__flips_the_axes_that_are_asked_for(axis: int) -> None:
    canvas = make_canvas((24, 24, 24))
    names = ("left_right", "front_back", "head_foot")
    settings = ViewSettings(size=24, **{**PLAIN, "flip_probability": 1.0, "flip_axes": [names[axis]]})
    np.testing.assert_array_equal(make_views(settings, [canvas], [0])[0], np.flip(canvas.pixels, axis))


FLIPS = ("front_back", "head_foot")


def test_draw__flips_along_the_named_axes_alone() -> None:
    canvases, samples = [shaped(60, 60, 60)] * 2000, list(range(2000))
    assert not drawn(recipe("ct"), canvases, samples).mirrored.any()
    mirrored = drawn(recipe("ct", flip_axes=FLIPS), canvases, samples).mirrored
    assert not mirrored[:, 0].any()
    np.testing.assert_allclose(mirrored[:, 1:].mean(0), 0.5, atol=0.05)


sides = st.integers(1, 400)


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    st.tuples(sides, sides, sides), st.sampled_from([1e-9, 0.01, 0.25, 0.5, 0.9, 0.999]),
    st.sampled_from([(1.0, 1.0), (0.8, 1.25), (0.05, 4.0)]), st.integers(0, 10**6), st.integers(16, 130),
)  # fmt: skip
def test_draw__views_of_a_volume_overlap(
    shape: tuple[int, int, int], overlap: float, zoom: tuple[float, float], seed: int, size: int
) -> None:
    settings = recipe("ct", size, overlap=overlap, zoom=zoom)
    canvases, samples = [shaped(*shape)] * 20, np.arange(20)
    query, key = (draw(settings, canvases, seed=seed, epoch=1, samples=samples, view=view) for view in range(2))
    assert shared_volume(query, key).min() >= overlap
    for view in (query, key):
        assert (view.extent == view.extent[:, :1]).all()
        assert (
            (view.extent >= size * zoom[0] - 0.5) & (view.extent <= size * zoom[1] + 0.5) | (view.extent == 1)
        ).all()
        space = np.array(shape) - view.extent
        inside = (view.start >= 0) & (view.start <= space)
        assert np.where(space >= 0, inside, view.start == space // 2).all()


def test_draw__overlaps_vary_and_boxes_fill_the_canvas() -> None:
    settings = recipe("ct", 40)
    canvases, samples = [shaped(200, 100, 70)] * 3000, list(range(3000))
    query, key = (drawn(settings, canvases, samples, view=view) for view in range(2))
    shared = shared_volume(query, key)
    assert shared.min() < 0.3
    assert shared.max() > 0.9
    assert 0.4 < shared.mean() < 0.7
    for view in (query, key):
        assert (view.start.min(0) == 0).all()
        assert ((view.start + view.extent).max(0) == (200, 100, 70)).all()
    exact = drawn(settings.model_copy(update={"zoom": (1.0, 1.0)}), canvases, samples).start / (160, 60, 30)
    np.testing.assert_allclose(exact.mean(0), 0.5, atol=0.02)  # uniform
    np.testing.assert_allclose(exact.std(0), 12**-0.5, atol=0.02)


def test_draw__without_overlap_views_are_independent() -> None:
    settings = recipe("ct", 40, overlap=0.0)
    canvases, samples = [shaped(400, 400, 400)] * 2000, list(range(2000))
    query, key = (drawn(settings, canvases, samples, view=view) for view in range(2))
    assert (shared_volume(query, key) == 0).mean() > 0.9
    assert abs(np.corrcoef(query.start[:, 0], key.start[:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize("axis", range(3))
def test_draw__rotates_about_the_normal_of_the_slices_or_all_axes(axis: int) -> None:
    canvases, samples = [shaped(60, 60, 60, slice_axis=axis)] * 500, list(range(500))
    angles = np.rad2deg(drawn(recipe("ct"), canvases, samples).angles)
    assert 14 < np.abs(angles[:, axis]).max() <= 15
    assert not np.delete(angles, axis, axis=1).any()
    angles = np.rad2deg(drawn(recipe("ct", rotation_axes="all"), canvases, samples).angles)
    assert ((np.abs(angles).max(0) > 14) & (np.abs(angles).max(0) <= 15)).all()
    assert np.abs(np.corrcoef(angles.T)[np.triu_indices(3, 1)]).max() < 0.15


def test_draw__probabilities_and_ranges_are_kept() -> None:
    settings = recipe(
        "ct", 96, blur_probability=0.2, noise_probability=0.7, jitter_probability=0.6, low_resolution_probability=0.4,
    )  # fmt: skip
    params = drawn(settings, [shaped(120, 120, 120)] * 4000, list(range(4000)))
    assert all(len(getattr(params, field.name)) == 4000 for field in fields(params))
    assert (params.sigma > 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (params.noise > 0).mean() == pytest.approx(0.7, abs=0.03)
    assert (params.contrast != 1).mean() == pytest.approx(0.6, abs=0.03)
    assert (params.resolution > 0).mean() == pytest.approx(0.4, abs=0.03)
    blurred, reduced = params.sigma[params.sigma > 0], params.resolution[params.resolution > 0]
    assert 0.5 <= blurred.min() < 0.55
    assert 0.95 < blurred.max() <= 1
    assert (reduced.min(), reduced.max()) == (48, 96)
    assert 0.048 < params.noise.max() <= 0.05
    assert (params.noise_at >= 0).all()
    assert (params.noise_at < noise_windows(96)).all()
    assert (params.extent.min(), params.extent.max()) == (77, 120)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_render__brightness_contrast_gamma_follow_the_formula(dtype: type) -> None:
    canvas, white = make_canvas((24, 24, 24), dtype=dtype), np.iinfo(dtype).max
    settings = ViewSettings(size=24, **{**PLAIN, "jitter_probability": 1.0})
    for sample in range(4):
        params = drawn(settings, [canvas], [sample])
        grey = canvas.pixels / white
        mean = grey.mean() * params.brightness[0]
        expected = np.clip((grey * params.brightness[0] - mean) * params.contrast[0] + mean, 0, 1) ** params.gamma[0]
        # Curves of 16 bits are read at whole grey levels, and are steep where it is dark.
        made = make_views(settings, [canvas], [sample])[0] / white
        np.testing.assert_allclose(made, expected, atol=(1.01 if white == 255 else 5) / white)
    assert params.brightness[0] != 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_render__blur_is_the_exact_one_along_all_axes(sigma: float, dtype: type) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (24, 26, 28)).astype(dtype)
    canvas = VolumeCanvas(rough[:24, :24, :24], (1.0, 1.0, 1.0))
    settings = ViewSettings(size=24, **{**PLAIN, "blur_probability": 1.0, "blur_sigma": [sigma, sigma]})
    exact = ndimage.gaussian_filter(canvas.pixels.astype(float), sigma, mode="mirror", truncate=6)
    difference = make_views(settings, [canvas], [0])[0] - exact
    assert np.abs(difference).max() < 1.8  # rounded twice
    assert abs(difference.mean()) < 0.3


def test_render__low_resolution_reduces_and_enlarges_along_all_axes() -> None:
    size = 40
    settings = ViewSettings(size=size, **{**PLAIN, "low_resolution_probability": 1.0})
    canvas = make_canvas((size,) * 3, sigma=0.6)
    for sample in range(3):
        params = drawn(settings, [canvas], [sample])
        made = make_views(settings, [canvas], [sample])[0].astype(float)
        expected = canvas.pixels.astype(float)
        for before, after in ((size, params.resolution[0]), (params.resolution[0], size)):
            at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
            for axis in range(3):
                low = np.minimum(at.astype(int), before - 2)
                weight = (at - low).reshape([-1 if axis == other else 1 for other in range(3)])
                first, second = np.take(expected, low, axis), np.take(expected, low + 1, axis)
                expected = first * (1 - weight) + second * weight
        assert np.abs(made - expected).max() < 3
        assert made.std() < canvas.pixels.std()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_render__noise_has_the_drawn_spread_and_differs_by_slice(dtype: type) -> None:
    white = np.iinfo(dtype).max
    canvas = VolumeCanvas(np.full((40, 40, 40), white // 2, dtype), (1.0, 1.0, 1.0))
    settings = ViewSettings(size=40, **{**PLAIN, "noise_probability": 1.0, "noise": 0.1})
    for sample in range(5):
        noise = (make_views(settings, [canvas], [sample])[0].astype(float) - white // 2) / white
        assert noise.std() == pytest.approx(drawn(settings, [canvas], [sample]).noise[0], rel=0.05, abs=0.002)
        assert abs(noise.mean()) < 0.003
        assert abs(np.corrcoef(noise.reshape(40, -1))[np.triu_indices(40, 1)]).max() < 0.15


def test_render__sixteen_bits_agree_with_eight() -> None:
    deep = make_canvas((60, 60, 50), dtype=np.uint16)
    shallow = replace(deep, pixels=np.rint(deep.pixels / 257).astype(np.uint8))
    for axes in ("slice", "all"):
        settings = recipe("mr", 32, rotation_axes=axes)
        a, b = (make_views(settings, [canvas] * 3, [1, 2, 3]) for canvas in (deep, shallow))
        assert a.dtype == np.uint16
        assert np.abs(a / 257.0 - b).max() < 5


def test_whole_view__shows_the_whole_volume() -> None:
    canvas = make_canvas((50, 30, 61), sigma=4)
    assert (whole_view(make_canvas((24, 24, 24)), 24) == make_canvas((24, 24, 24)).pixels).all()
    view = whole_view(canvas, 40)
    points = [np.clip((np.arange(40) + 0.5) * side / 40 - 0.5, 0, side - 1) for side in canvas.shape]
    expected = ndimage.map_coordinates(canvas.pixels.astype(float), np.meshgrid(*points, indexing="ij"), order=1)
    assert view.shape == (40, 40, 40)
    assert np.abs(view - expected).max() <= 1.6
    large = make_canvas((161, 80, 122), sigma=6)  # one voxel is left out, and two at the other axis
    shrunk = whole_view(large, 40).astype(float)
    average = large.pixels[:160, :, 1:121].astype(float).reshape(40, 4, 40, 2, 40, 3).mean((1, 3, 5))
    assert np.sqrt(((shrunk - average) ** 2).mean()) < 3


@pytest.mark.parametrize("shape", [(24, 24, 24), (25, 60, 100), (7, 24, 31), (1, 200, 23), (48, 42, 43)])
def test_windows__cover_the_volume(shape: tuple[int, int, int]) -> None:
    size = 24
    numbers = np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)
    made = windows(VolumeCanvas(numbers, (1.0, 1.0, 1.0)), size)
    assert made.shape[1:] == (size,) * 3
    assert set(np.unique(made)) >= set(numbers.ravel().tolist())
    expected = 1
    for length in shape:
        expected *= 1 + max(int(np.ceil((length - size) / 18)), 0)
    assert len(made) == expected
    for window in made:  # each is a part of the volume, with black around a small one
        corner = np.argwhere(numbers == window[window > 0].min())[0]
        part = numbers[tuple(slice(at, at + size) for at in corner)]
        margins = [(size - side) // 2 + (size - side) % 2 for side in part.shape]
        inner = tuple(slice(margin, margin + side) for margin, side in zip(margins, part.shape, strict=True))
        np.testing.assert_array_equal(window[inner], part)
        assert (window > 0).sum() == part.size


def test_windows__are_evenly_spaced_and_overlap_by_a_quarter() -> None:
    line = np.broadcast_to(np.arange(1, 101, dtype=np.uint8)[:, None, None], (100, 24, 24))
    first = windows(VolumeCanvas(line, (1.0, 1.0, 1.0)), 24)[:, 0, 0, 0].astype(int) - 1
    assert first[0] == 0
    assert first[-1] == 76
    assert np.ptp(np.diff(first)) <= 1
    assert np.diff(first).max() <= 18


def test_draw__gives_the_recorded_numbers() -> None:
    """Every CPU comes to the same bits. Whoever changes what is drawn records the new digest and says so to users."""
    digest = hashlib.sha256()
    for name in sorted(VOLUME_RECIPES):
        for axes in ("slice", "all"):
            for view in range(2):
                settings = recipe(name, rotation_axes=axes, flip_axes=FLIPS)
                params = drawn(settings, [shaped(60, 30, 20)] * 20, list(range(20)), view=view)
                for field in fields(params):
                    digest.update(np.ascontiguousarray(getattr(params, field.name)).tobytes())
    assert digest.hexdigest()[:16] == "ad122d09adde4b5b"


def test_render__does_not_change_canvases() -> None:
    canvas = make_canvas((24, 24, 24))
    before = canvas.pixels.copy()
    canvas.pixels.flags.writeable = False
    for axes in ("slice", "all"):
        make_views(recipe("mr", rotation_axes=axes), [canvas] * 8, list(range(8)))
    whole_view(canvas, 24)
    np.testing.assert_array_equal(canvas.pixels, before)


def test_render__does_not_depend_on_opencvs_threads() -> None:
    threads, settings, canvas = cv2.getNumThreads(), recipe("mr", 48, rotation_axes="all"), make_canvas((80, 80, 70))
    try:
        made = []
        for number in (1, 3):
            cv2.setNumThreads(number)
            made.append(make_views(settings, [canvas] * 3, [0, 1, 2]))
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(*made)
