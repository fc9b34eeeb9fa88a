from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.errors import DataError, SettingsError
from medmoco.evaluation.features.image_sets import image_set
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.supervised import SECRET, make_settings, write_images

GRAY = Preprocessing(canvas_size=32, bit_depth=8, window="voi", mean=0.5, std=0.25, size=32)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (3, "int is not images"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) is not \(N, H, W\).*pass one image as \[image\]"),
        (pd.DataFrame({"file": ["a.png"]}), "no column Path; it has: file"),
        (pd.DataFrame({"Path": ["a.png", None]}), "1 rows of the table have no Path"),
    ],
)
def test_image_set__refuses_what_is_no_images(images: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        image_set(images, None, GRAY.settings)


def test_image_set__an_empty_folder_is_refused_without_its_name(tmp_path: Path) -> None:
    (tmp_path / SECRET).mkdir()
    with pytest.raises(DataError, match="holds no image") as caught:
        image_set(tmp_path / SECRET, None, GRAY.settings)
    assert SECRET not in str(caught.value)


def test_image_set__paths_are_below_the_root(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    table = pd.read_csv(tmp_path / "data" / "test.csv")
    by_table = image_set(table, tmp_path / "data", GRAY.settings)
    by_folder = image_set("data", tmp_path, GRAY.settings)
    by_list = image_set(list(table["Path"]), str(tmp_path / "data"), GRAY.settings)
    assert (len(by_table.rows), len(by_folder.rows)) == (10, 46)
    for found in (by_table, by_list):
        (canvas,), _ = found.read(np.array([9]))
        (file,) = (tmp_path / "data").glob(f"test-{SECRET}-9.png")
        np.testing.assert_array_equal(canvas.pixels, GRAY.canvas(file).pixels)


def test_image_set__a_table_may_name_frames(tmp_path: Path) -> None:
    frames = np.stack([RAMP12, RAMP12 // 2])
    save_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=2, WindowCenter=2048, WindowWidth=4096)
    table = pd.DataFrame({"Path": ["a.dcm"] * 3, "Frame": [1, 2, None]})
    (first, second, none), _ = image_set(table, tmp_path, GRAY.settings).read(np.arange(3))
    assert (first.pixels == none.pixels).all()
    assert second.pixels.max() < first.pixels.max()


def test_image_set__arrays_of_files_need_no_workers_only_if_decoded(tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    assert image_set(pixels, None, GRAY.settings).in_memory
    assert not image_set(np.array(["a.png", "b.png"]), None, GRAY.settings).in_memory
    assert not image_set([pixels[0], "b.png"], None, GRAY.settings).in_memory


def test_image_set__npy_files_are_images_for_bands_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.float32))
    bands = GRAY.model_copy(update={"channels": 3, "band_ranges": ((0.0, 1.0),)})
    assert len(image_set(tmp_path, None, bands.settings).rows) == 1
    with pytest.raises(DataError, match="holds no image"):
        image_set(tmp_path, None, GRAY.settings)


def test_image_set__a_split_keeps_its_rows(tmp_path: Path) -> None:
    settings = make_settings(write_images(tmp_path / "data"))
    found = image_set("test", None, settings)
    assert found.rows.tolist() == list(range(2, 12))
    assert found.what == "of test.csv"
