from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from medmoco import config
from medmoco.data.augment.views import draw, render, whole_view
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.data.loading.loading import read_canvases
from medmoco.data.loading.preview import preview
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import SettingsError

SIZE, TILE, LEFT = 32, 36, 100  # of a view, of a tile with its gap, of the row's label


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [f"secret-{number}.png" for number in range(5)]
    for name in names:
        cv2.imwrite(str(folder / name), generator.integers(0, 256, (60, 41), np.uint8))
    (folder / "train.csv").write_text("\n".join(["Path", *names]) + "\n")
    return folder


def make_settings(data: Path, *overrides: str) -> config.RunSettings:
    given = ["out=run", f"data.manifest={data}", f"data.root={data}", f"views.size={SIZE}", "data.canvas_size=48"]
    return config.load(None, [*given, *overrides])


def tile(picture: np.ndarray, line: int, column: int) -> np.ndarray:
    y, x = line * TILE + 2, LEFT + column * TILE + 2
    return picture[y : y + SIZE, x : x + SIZE]


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_preview__shows_whole_images_and_what_training_sees(tmp_path: Path, data: Path, bit_depth: int) -> None:
    settings = make_settings(data, f"data.bit_depth={bit_depth}", "seed=4")
    out = preview(settings, tmp_path / "new" / "pictures" / "views.png", images=3, views=5)
    picture = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (3 * TILE, LEFT + 6 * TILE)
    assert picture.dtype == np.uint8

    shift = bit_depth - 8
    split = load_manifest(settings.data, ("train",))["train"]
    samples = np.array([0, 2, 4])
    canvases, _ = read_canvases(split, samples, settings)
    for line, sample in enumerate(samples):
        canvas = to_canvas(read_image(split.files[sample]), 48, bit_depth)
        np.testing.assert_allclose(tile(picture, line, 0), whole_view(canvas, SIZE) >> shift, atol=1)
    for column in range(5):
        drawn = draw(settings.views, canvases, seed=4, epoch=column // 2, samples=samples, view=column % 2)
        (views,) = render(settings.views, canvases, [drawn])
        for line in range(3):
            np.testing.assert_allclose(tile(picture, line, column + 1), views[line, 0] >> shift, atol=1)


def test_preview__keys_are_of_the_patients_other_image(tmp_path: Path, data: Path) -> None:
    (data / "train.csv").write_text(
        "Path,PatientID\n" + "\n".join(f"secret-{n}.png,p{n // 2}" for n in range(5)) + "\n"
    )
    settings = make_settings(data, "positives.image=patient")
    picture = cv2.imread(str(preview(settings, tmp_path / "a.png", images=3, views=4)), cv2.IMREAD_UNCHANGED)
    split = load_manifest(settings.data, ("train",))["train"]
    for column, samples in enumerate(([0, 2, 4], [1, 3, 4], [0, 2, 4], [1, 3, 4])):
        shown = np.array(samples)
        canvases, _ = read_canvases(split, shown, settings)
        drawn = draw(settings.views, canvases, seed=0, epoch=column // 2, samples=shown, view=column % 2)
        (views,) = render(settings.views, canvases, [drawn])
        for line in range(3):
            np.testing.assert_array_equal(tile(picture, line, column + 1), views[line, 0])


def test_preview__labels_are_rows_of_the_spreadsheet(tmp_path: Path, data: Path) -> None:
    picture = cv2.imread(str(preview(make_settings(data), tmp_path / "a.png", images=2, views=1)), 0)
    wanted = np.zeros((SIZE, 96), np.uint8)
    cv2.putText(wanted, "row 6", (4, SIZE // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    np.testing.assert_array_equal(picture[TILE + 2 : TILE + 2 + SIZE, 2:98], wanted)


def test_preview__fewer_images_than_asked_for(tmp_path: Path, data: Path) -> None:
    picture = cv2.imread(str(preview(make_settings(data), tmp_path / "a.png", images=50, views=2)), 0)
    assert picture.shape == (5 * TILE, LEFT + 3 * TILE)


def test_preview__rows_that_a_pack_leaves_out_are_not_shown(tmp_path: Path, data: Path) -> None:
    (data / "secret-0.png").write_bytes(b"no image")
    settings = make_settings(data, f"data.pack={tmp_path / 'pack'}", "data.pack_failures=leave_out")
    assert make_pack(settings.data, tmp_path / "pack", lambda _: None) == 1
    picture = cv2.imread(str(preview(settings, tmp_path / "a.png", images=50, views=2)), 0)
    assert picture.shape == (4 * TILE, LEFT + 3 * TILE)


def test_preview__file_names_nothing(tmp_path: Path, data: Path) -> None:
    assert b"secret" not in preview(make_settings(data), tmp_path / "a.png").read_bytes()


def test_preview__unwritable_place_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="cannot be written"):
        preview(make_settings(data), tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "mine"
