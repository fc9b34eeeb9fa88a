from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write

_VOLUMES = ["data.dimensions=3", "data.window=percentiles", "views.recipe=mr"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["views.crop_scale=[0.9, 0.1]"], "crop_scale [0.9, 0.1] must be [low, high]"),
        (["views.crop_scale=[0, 1]"], "crop_scale must be above 0"),
        (["views.zoom=[0.5, 2]"], "zoom applies to volumes (recipes ct and mr); with recipe xray it has no effect"),
        ([*_VOLUMES, "views.zoom=[2, 1]"], "zoom [2, 1] must be [low, high]"),
        ([*_VOLUMES, "views.crop_scale=[0.2, 1]"], "crop_scale applies to images; with recipe mr it has no effect"),
        ([*_VOLUMES, "views.flip_axes=[up]"], "'views.flip_axes.0'"),
    ],
)
def test_views__refuse(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, *overrides)


def test_views__recipes_of_volumes_have_their_own_size_and_ranges(tmp_path: Path) -> None:
    views = config.load(write(tmp_path, MINIMAL), _VOLUMES).views
    assert (views.size, views.gamma, views.blur_sigma, views.low_resolution_probability) == (96, 0.4, (0.5, 1.0), 0.25)
    assert views.flip_axes == ()
    assert config.load(write(tmp_path, MINIMAL), [*_VOLUMES, "views.size=32"]).views.size == 32
