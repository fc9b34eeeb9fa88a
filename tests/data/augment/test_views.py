from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medmoco.config import RECIPES, ViewSettings
from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.augment.views import draw, render, toned, unchanged, whole_view
from medmoco.data.image_io.images import Canvas
from tests.helpers.cpus import instruction_sets
from tests.helpers.made_views import canvases, drawn, numbers, pictures

PLAIN = dict(
    flip_probability=0.0, rotation=0.0, jitter_probability=0.0, blur_probability=0.0, noise_probability=0.0,
    crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0],
)  # fmt: skip


def make_canvas(height: int, width: int, *, size: int | None = None, dtype: type = np.uint8, seed: int = 0) -> Canvas:
    """A smooth random image in the corner of a padded square."""
    size = size or max(height, width)
    rough = np.random.default_rng(seed).random((height, width))
    smooth = ndimage.gaussian_filter(rough, 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    pixels = np.zeros((size, size), dtype)
    pixels[:height, :width] = np.rint(smooth * np.iinfo(dtype).max)
    return Canvas(pixels, height, width)


def make_views(settings: ViewSettings, canvases: list[Canvas], samples: list[int], *, epoch: int = 0, view: int = 0):
    drawn = draw(settings, canvases, seed=5, epoch=epoch, samples=np.array(samples), view=view)
    return render(settings, canvases, [drawn])[0][:, 0], drawn


def recipe(name: str, size: int = 64) -> ViewSettings:
    return ViewSettings(**{"recipe": name, "size": size, **RECIPES[name]})


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_render__a_view_depends_on_its_own_sample_only(name: str) -> None:
    settings = recipe(name)
    canvases = [make_canvas(80, 60, size=80, seed=seed) for seed in range(6)]
    together, _ = make_views(settings, canvases, [10, 11, 12, 13, 14, 15])
    alone, _ = make_views(settings, [canvases[3]], [13])
    reversed_order, _ = make_views(settings, canvases[::-1], [15, 14, 13, 12, 11, 10])
    np.testing.assert_array_equal(together[3], alone[0])
    np.testing.assert_array_equal(together, reversed_order[::-1])


def test_render__differs_by_view_epoch_and_sample() -> None:
    settings, canvas = recipe("xray"), make_canvas(80, 80)
    base, _ = make_views(settings, [canvas], [0])
    for other in ({"view": 1}, {"epoch": 1}):
        changed, _ = make_views(settings, [canvas], [0], **other)
        assert (changed != base).mean() > 0.5
    changed, _ = make_views(settings, [canvas], [1])
    assert (changed != base).mean() > 0.5


def test_render__identity_at_equal_size() -> None:
    canvas = make_canvas(64, 64)
    views, _ = make_views(ViewSettings(size=64, **PLAIN), [canvas], [0])
    np.testing.assert_array_equal(views[0], canvas.pixels)


def test_render__flip_mirrors_left_and_right() -> None:
    canvas = make_canvas(64, 64)
    views, _ = make_views(ViewSettings(size=64, **{**PLAIN, "flip_probability": 1.0}), [canvas], [0])
    np.testing.assert_array_equal(views[0], canvas.pixels[:, ::-1])


@pytest.mark.parametrize("sample", range(4))
def test_render__crop_without_rotation_is_the_warp_within_half_a_pixel(sample: int) -> None:
    canvas = make_canvas(60, 80, size=80, seed=sample)
    settings = ViewSettings(size=48, **{**PLAIN, "flip_probability": 0.5, "crop_scale": [0.2, 0.9]})
    views, drawn = make_views(settings, [canvas], [sample])
    x0, x1 = drawn.centre_x[0] - drawn.width[0] / 2, drawn.centre_x[0] + drawn.width[0] / 2
    y0, y1 = drawn.centre_y[0] - drawn.height[0] / 2, drawn.centre_y[0] + drawn.height[0] / 2
    box = tuple(float(round(edge)) for edge in (x0, y0, x1, y1))
    valid = Image.fromarray(canvas.pixels[: canvas.height, : canvas.width])
    expected = np.asarray(valid.transform((48, 48), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR), float)
    if drawn.mirrored[0]:
        expected = expected[:, ::-1]
    assert np.abs(views[0].astype(float) - expected)[1:-1, 1:-1].max() <= 1


def warp_oracle(canvas: Canvas, drawn: ViewParameters, size: int) -> np.ndarray:
    """Crop, resize, mirror and rotate pixel by pixel in float64."""
    image = canvas.pixels[: canvas.height, : canvas.width].astype(float)
    out = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            x = ((column + 0.5) / size - 0.5) * drawn.width[0] * (-1 if drawn.mirrored[0] else 1)
            y = ((row + 0.5) / size - 0.5) * drawn.height[0]
            cos, sin = np.cos(drawn.angle[0]), np.sin(drawn.angle[0])
            source_x, source_y = drawn.centre_x[0] + cos * x - sin * y, drawn.centre_y[0] + sin * x + cos * y
            point = [[source_y - 0.5], [source_x - 0.5]]
            out[row, column] = ndimage.map_coordinates(image, point, order=1, mode="mirror")[0]
    return out


@pytest.mark.parametrize("sample", range(4))
def test_render__one_warp_equals_plain_loops(sample: int) -> None:
    canvas = make_canvas(60, 80, size=80, seed=sample)
    settings = ViewSettings(size=48, **{**PLAIN, "rotation": 25.0, "flip_probability": 0.5, "crop_scale": [0.2, 0.9]})
    views, drawn = make_views(settings, [canvas], [sample])
    difference = views[0].astype(float) - warp_oracle(canvas, drawn, 48)
    # OpenCV places samples on a grid of 1/32 pixel.
    assert np.abs(difference).max() < 6
    assert np.sqrt((difference**2).mean()) < 1.2


def test_render__crops_stay_inside_the_valid_part() -> None:
    canvas = make_canvas(200, 120, size=200)
    settings = ViewSettings(size=32, **{**PLAIN, "crop_scale": [0.05, 1.0], "crop_ratio": [0.5, 2.0]})
    drawn = draw(settings, [canvas] * 500, seed=1, epoch=0, samples=np.arange(500), view=0)
    assert (drawn.centre_x - drawn.width / 2 >= -1e-9).all()
    assert (drawn.centre_x + drawn.width / 2 <= 120 + 1e-9).all()
    assert (drawn.centre_y - drawn.height / 2 >= -1e-9).all()
    assert (drawn.centre_y + drawn.height / 2 <= 200 + 1e-9).all()
    share = drawn.width * drawn.height / (200 * 120)
    assert share.min() >= 0.04
    assert share.max() > 0.9


def test_render__strong_shrinking_does_not_alias() -> None:
    """A one-pixel checkerboard must become grey, not a pattern; plain bilinear sampling shows a pattern."""
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    out = whole_view(Canvas(board, 512, 512), 60)
    assert np.ptp(out[1:-1, 1:-1].astype(int)) <= 2
    aliased = cv2.resize(board, (60, 60), interpolation=cv2.INTER_LINEAR)
    assert np.ptp(aliased.astype(int)) > 100


@pytest.mark.parametrize("canvas_size", [70, 100, 127, 200, 300])
def test_whole__is_close_to_pillows_antialiased_resize(canvas_size: int) -> None:
    canvas = make_canvas(canvas_size, canvas_size)
    reference = np.asarray(Image.fromarray(canvas.pixels).resize((64, 64), Image.Resampling.BILINEAR), float)
    difference = whole_view(canvas, 64).astype(float) - reference
    assert np.sqrt((difference**2).mean()) < 6
    assert abs(difference.mean()) < 0.5


def test_whole__ignores_padding() -> None:
    small = make_canvas(90, 60, size=90)
    large = Canvas(np.pad(small.pixels, ((0, 40), (0, 40)), constant_values=255), 90, 60)
    np.testing.assert_array_equal(whole_view(small, 48), whole_view(large, 48))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_render__brightness_contrast_gamma_follow_the_formula(dtype: type) -> None:
    canvas = make_canvas(64, 64, dtype=dtype)
    settings = ViewSettings(size=64, **{**PLAIN, "jitter_probability": 1.0})
    for sample in range(4):
        views, drawn = make_views(settings, [canvas], [sample])
        white = np.iinfo(dtype).max
        grey = canvas.pixels / white
        mean = grey.mean() * drawn.brightness[0]
        expected = np.clip((grey * drawn.brightness[0] - mean) * drawn.contrast[0] + mean, 0, 1) ** drawn.gamma[0]
        # Curves of 16 bits are read at whole grey levels, and are steep where it is dark.
        np.testing.assert_allclose(views[0] / white, expected, atol=(1.01 if white == 255 else 5) / white)
    assert drawn.brightness[0] != 1


def test_render__blur_has_the_drawn_sigma() -> None:
    pixels = np.zeros((65, 65), np.uint8)
    pixels[32, 32] = 255
    settings = ViewSettings(size=65, **{**PLAIN, "blur_probability": 1.0, "blur_sigma": [6.0, 6.0]})
    views, drawn = make_views(settings, [Canvas(pixels, 65, 65)], [0])
    assert drawn.sigma[0] == pytest.approx(6 * 65 / 224)
    weights = views[0].astype(float)
    offsets = np.arange(65) - 32
    spread = np.sqrt((weights.sum(0) * offsets**2).sum() / weights.sum())
    assert spread == pytest.approx(drawn.sigma[0], rel=0.1)


@pytest.mark.parametrize("sigma", [0.2, 0.4, 0.7, 1.0, 1.6, 2.0])
def test_render__blur_is_within_a_grey_level_of_the_exact_one(sigma: float) -> None:
    canvas = make_canvas(224, 224)
    rough = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    settings = ViewSettings(size=224, **{**PLAIN, "blur_probability": 1.0, "blur_sigma": [sigma, sigma]})
    for pixels, bound in ((canvas.pixels, 0.75), (rough, 1.2)):
        views, _ = make_views(settings, [Canvas(pixels, 224, 224)], [0])
        exact = ndimage.gaussian_filter(pixels.astype(float), sigma, mode="mirror", truncate=6)
        assert np.abs(views[0] - exact).max() < bound


def test_render__a_strip_can_be_shrunk_too() -> None:
    for height, width in ((2, 512), (512, 1), (3, 512)):
        canvas = make_canvas(height, width, size=512)
        views, _ = make_views(recipe("xray", 32), [canvas], [0])
        assert views.shape == (1, 32, 32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_render__noise_has_the_drawn_spread_and_no_offset(dtype: type) -> None:
    white = np.iinfo(dtype).max
    canvas = Canvas(np.full((128, 128), white // 2, dtype), 128, 128)
    settings = ViewSettings(size=128, **{**PLAIN, "noise_probability": 1.0, "noise": 0.1})
    for sample in range(5):
        views, drawn = make_views(settings, [canvas], [sample])
        difference = (views[0].astype(float) - white // 2) / white
        assert difference.std() == pytest.approx(drawn.noise[0], rel=0.05, abs=0.002)
        assert abs(difference.mean()) < 0.003


def test_render__cutout_fills_the_drawn_rectangle_with_the_mean() -> None:
    canvas = make_canvas(64, 64)
    settings = ViewSettings(size=64, **{**PLAIN, "cutout_probability": 1.0, "cutout_scale": [0.1, 0.1]})
    views, drawn = make_views(settings, [canvas], [0])
    x0, y0, x1, y1 = drawn.cutout[0]
    assert (x1 - x0) * (y1 - y0) == pytest.approx(0.1 * 64 * 64, rel=0.15)
    assert np.ptp(views[0][y0:y1, x0:x1]) == 0
    outside = np.ones((64, 64), bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(views[0][outside], canvas.pixels[outside])


def test_draw__probabilities_are_kept() -> None:
    canvas = make_canvas(64, 64)
    settings = ViewSettings(
        size=64, flip_probability=0.3, blur_probability=0.2, noise_probability=0.7, jitter_probability=0.6
    )
    drawn = draw(settings, [canvas] * 4000, seed=1, epoch=0, samples=np.arange(4000), view=0)
    assert drawn.mirrored.mean() == pytest.approx(0.3, abs=0.03)
    assert (drawn.sigma > 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (drawn.noise > 0).mean() == pytest.approx(0.7, abs=0.03)
    assert (drawn.contrast != 1).mean() == pytest.approx(0.6, abs=0.03)
    assert np.abs(np.rad2deg(drawn.angle)).max() <= 10


def test_render__sixteen_bits_agree_with_eight() -> None:
    deep = make_canvas(80, 80, dtype=np.uint16)
    shallow = Canvas(np.rint(deep.pixels / 257).astype(np.uint8), 80, 80)
    settings = recipe("xray")
    a, _ = make_views(settings, [deep], [2])
    b, _ = make_views(settings, [shallow], [2])
    assert a.dtype == np.uint16
    assert np.abs(a / 257.0 - b).max() < 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_toned__changes_grey_levels_as_render_does_and_mirrors_the_image_alone(dtype: type) -> None:
    """A square image at its own size is what render makes of it; of others the padding stays black."""
    white = np.iinfo(dtype).max
    pixels = (np.random.default_rng(0).random((3, 32, 32)) * white).astype(dtype)
    canvases = [Canvas(pixels[0], 32, 32), Canvas(pixels[1], 32, 32), Canvas(pixels[2], 20, 32)]
    settings = ViewSettings(size=32, flip_probability=0.5)
    drawn = draw(settings, canvases, seed=4, epoch=0, samples=np.arange(3), view=0)
    drawn = replace(
        unchanged(canvases), mirrored=np.array([True, False, True]),
        brightness=drawn.brightness, contrast=drawn.contrast, gamma=drawn.gamma,
    )  # fmt: skip
    made = toned(canvases, drawn)
    assert made.shape == (3, 1, 32, 32)
    np.testing.assert_array_equal(made[:2], render(settings, canvases, [drawn])[0][:2])
    assert not made[2, 0, 20:].any()
    plain = toned(canvases, unchanged(canvases))
    np.testing.assert_array_equal(plain[2, 0, :20], pixels[2, :20])
    flipped = toned(canvases, replace(unchanged(canvases), mirrored=np.ones(3, bool)))
    np.testing.assert_array_equal(flipped[2, 0, :20], pixels[2, :20, ::-1])
    np.testing.assert_array_equal(canvases[0].pixels, pixels[0])  # canvases are left alone


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray__is_one_plane_of_several(dtype: type) -> None:
    """A gray image takes the way of a band: canvases with a plane more give the same views in the first."""
    gray, bands = canvases(dtype), canvases(dtype, channels=2)
    for recipe in RECIPES:
        settings, parameters = drawn(recipe, gray)
        ((one,), (two,)) = (render(settings, images, [parameters]) for images in (gray, bands))
        np.testing.assert_array_equal(one[:, 0], two[:, 0])
    np.testing.assert_array_equal(toned(gray, parameters)[:, 0], toned(bands, parameters)[:, 0])
    np.testing.assert_array_equal(whole_view(gray[0], 40), whole_view(bands[0], 40)[..., 0])


def test_draw__gives_the_recorded_numbers() -> None:
    """Every CPU comes to the same bits. Whoever changes what is drawn records the new digest and says so to users."""
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in numbers().values()))
    assert digest.hexdigest()[:16] == "baa0c9e93fd13333"


@pytest.mark.parametrize("name", instruction_sets())
def test_render__other_cpus_make_the_same_views(tmp_path: Path, name: str) -> None:
    """With fewer instructions, what is drawn has the same bits, and so have pixels if the CPU has AVX2 all the same."""
    command = [sys.executable, "-m", "tests.helpers.made_views", str(tmp_path / "there.npz")]
    subprocess.run(command, env=os.environ | instruction_sets()[name], cwd=Path(__file__).parents[3], check=True)
    exact, pixels, there = numbers(), pictures(), np.load(tmp_path / "there.npz")
    assert there.files == [*exact, *pixels]
    for key, values in (exact | pixels).items():
        if name == "oldest" and key in pixels:
            apart = np.abs(values.astype(int) - there[key].astype(int))
            # OpenCV without fused multiplication and addition rounds some of its sums otherwise.
            assert apart.max() <= (1 if values.dtype == np.uint8 else 8), key
            assert (apart > 0).mean() <= (0.001 if values.dtype == np.uint8 else 0.05), key
        else:
            np.testing.assert_array_equal(values, there[key], key)
