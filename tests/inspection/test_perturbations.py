from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.augment.views import draw, render, unchanged, whole_view
from medmoco.data.image_io.images import Canvas
from medmoco.errors import SettingsError
from medmoco.inspection.perturbations import Perturbation, _changed, parse_perturbation, perturb
from tests.helpers.films import film
from tests.helpers.looks import make_data


@pytest.mark.parametrize(
    ("text", "perturbation"),
    [
        ("flip", Perturbation("flip", None)),
        ("view", Perturbation("view", None)),
        ("rotate", Perturbation("rotate", 10)),
        ("rotate:-25", Perturbation("rotate", -25)),
        ("crop:0.5", Perturbation("crop", 0.5)),
        ("intensity:-0.3", Perturbation("intensity", -0.3)),
    ],
)
def test_parse_perturbation__kind_and_amount(text: str, perturbation: Perturbation) -> None:
    assert parse_perturbation(text) == perturbation
    assert parse_perturbation(str(perturbation)) == perturbation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mirror", "choose from flip, rotate, crop, intensity, view"),
        ("flip:3", "flip takes no number"),
        ("view:", "view takes no number"),
        ("rotate:much", "rotate takes a number between -180 and 180, not 0"),
        ("rotate:0", "not 0"),
        ("rotate:nan", "between"),
        ("crop:1", "crop takes a number between 0.01 and 0.99"),
        ("intensity:-1", "between -0.9 and 10"),
    ],
)
def test_parse_perturbation__what_is_none_is_refused(text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        parse_perturbation(text)


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_perturb__are_the_changes_they_are_named_after(tmp_path: Path, bit_depth: int) -> None:
    settings = make_data(tmp_path, "views.cutout_probability=1")
    factor = 1 if bit_depth == 8 else 257
    canvases = [Canvas(film(seed, 64, 64).astype(f"uint{bit_depth}") * factor, 64, 64) for seed in range(3)]
    plain = np.stack([whole_view(canvas, 64) for canvas in canvases]).astype(float)
    perturbations = [
        Perturbation("flip", None),
        Perturbation("rotate", 90.0),
        Perturbation("crop", 0.25),
        Perturbation("intensity", 0.2),
        Perturbation("view", None),
    ]
    rows, samples = np.array([2, 5, 9, 11]), np.array([3, 0, 1])
    made = perturb(canvases, samples, perturbations=perturbations, views=settings.views, rows=rows, seed=4).astype(
        float
    )
    assert made.shape == (3, 5, 64, 64)
    white = 255 if bit_depth == 8 else 65535
    np.testing.assert_array_equal(made[:, 0], plain[:, :, ::-1])
    inside = slice(2, -2)
    turned = [np.abs(made[:, 1] - np.rot90(plain, k, (1, 2)))[:, inside, inside].max() for k in (1, 3)]
    assert min(turned) <= white / 255
    middle = made[:, 2, ::2, ::2]  # twice as large
    assert np.abs(middle - plain[:, 16:48, 16:48]).mean() < 0.02 * white
    np.testing.assert_allclose(made[:, 3], np.minimum(1.2 * plain, white), atol=1)
    drawn = draw(settings.views, canvases, seed=4, epoch=0, samples=np.array([11, 2, 5]), view=0)
    np.testing.assert_array_equal(made[:, 4], render(settings.views, canvases, [drawn])[0][:, 0])


def test_changed__touches_nothing_else() -> None:
    plain = unchanged([Canvas(film(0), 96, 80)])
    touched = {"flip": {"mirrored"}, "rotate": {"angle"}, "crop": {"width", "height"}, "intensity": {"brightness"}}
    for kind, names in touched.items():
        changed = _changed(plain, parse_perturbation(kind))
        differ = {
            field.name
            for field in fields(plain)
            if not np.array_equal(getattr(plain, field.name), getattr(changed, field.name))
        }
        assert differ == names
