from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from medmoco.config import DataSettings
from medmoco.data.augment.views import whole_view
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.errors import SettingsError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.plotting.pictures import Tile, positives, read_views, shown, write_picture
from tests.helpers.looks import make_data, names_a_secret

SIDE = int(1.9 * 120)  # of a tile, in pixels


def centre_of(picture: np.ndarray, lines: int, columns: int, line: int, column: int) -> np.ndarray:
    """Return the middle of a tile, (.., .., 3); captions are above the tiles."""
    height, width = picture.shape[0] / lines, picture.shape[1] / columns
    y, x = int((line + 1) * height - SIDE / 2), int(column * width + 0.97 * width / 2)
    return picture[y - 40 : y + 40, x - 40 : x + 40].astype(float)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_write_picture__shows_every_tile_in_its_place(tmp_path: Path, dtype: Any) -> None:
    white = np.iinfo(dtype).max
    lines = [[Tile(np.full((32, 32), white * grey // 8, dtype), "row 2") for grey in line] for line in ([1, 3], [5, 7])]
    write_picture(lines, tmp_path / "new" / "a.png")
    picture = cv2.imread(str(tmp_path / "new" / "a.png"))
    for line, column, grey in ((0, 0, 1), (0, 1, 3), (1, 0, 5), (1, 1, 7)):
        assert centre_of(picture, 2, 2, line, column) == pytest.approx(255 * grey / 8, abs=1.5)


def test_write_picture__an_overlay_colours_only_where_it_is_high(tmp_path: Path) -> None:
    overlay = np.zeros((32, 32))
    overlay[:, 16:] = 1
    write_picture([[Tile(np.full((32, 32), 100, np.uint8), "", overlay)]], tmp_path / "a.png")
    left, right = np.split(centre_of(cv2.imread(str(tmp_path / "a.png")), 1, 1, 0, 0), 2, axis=1)
    assert np.ptp(left, axis=2).max() <= 1
    assert np.ptp(right[:, 2:], axis=2).min() > 30


def test_write_picture__lines_of_different_length(tmp_path: Path) -> None:
    tile = Tile(np.zeros((8, 8), np.uint8), "")
    write_picture([[tile], [tile, tile, tile]], tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert centre_of(picture, 2, 3, 0, 2).min() == 255
    assert centre_of(picture, 2, 3, 1, 2).max() == 0


def test_write_picture__unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_picture([[Tile(np.zeros((8, 8), np.uint8), "")]], tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "mine"


def test_read_views__are_what_encoders_see(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "evaluate.size=48")
    val = load_splits(settings, ("val",))["val"]
    views = read_views(val, np.array([4, 1]), settings)
    for view, place in zip(views, (4, 1), strict=True):
        np.testing.assert_array_equal(view[0], whole_view(to_canvas(read_image(val.files[place]), 64, 8), 48))
    write_picture([[Tile(shown(view, settings.data), "") for view in views]], tmp_path / "a.png")
    assert not names_a_secret(tmp_path / "a.png")


def test_shown__colours_in_colour_and_bands_as_their_mean() -> None:
    view = np.arange(3 * 4 * 4, dtype=np.uint16).reshape(3, 4, 4) * 1000
    colours = shown(view, DataSettings(manifest=Path(), root=".", channels="rgb"))
    np.testing.assert_array_equal(colours, (view >> 8).transpose(1, 2, 0))
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(shown(view, DataSettings(manifest=Path(), root=".", channels=3)), view[1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 0, np.nan], "B"),
        ([1, 1, 0, 1], "A, B and 1 more"),
        ([0, np.nan, 0, 0], "no positive label"),
        ([np.nan] * 4, "no known label"),
    ],
)
def test_positives__says_what_is_known(values: list[float], expected: str) -> None:
    split: Any = SimpleNamespace(label_names=("A", "B", "C", "D"), labels=np.array([values]))
    assert positives(split, 0) == expected
