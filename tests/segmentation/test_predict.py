from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medmoco.cli.program import app
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.predict import predict_masks, predict_masks_of_files
from medmoco.segmentation.segment import segment
from medmoco.segmentation.segmenter import load_segmenter
from tests.helpers.blobs import SECRET, make_settings, write_blobs


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("run")
    manifest = write_blobs(folder / "data", request.param)
    segment(make_settings(manifest, request.param, "segmentation.lr=3e-3"), "random", folder / "run")
    return folder, request.param


def read(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj) if file.name.endswith(".gz") else np.asarray(Image.open(file))


def test_predict_masks__names_rows_and_keeps_the_grid(run: tuple[Path, int], tmp_path: Path) -> None:
    folder, dimensions = run
    lines: list[str] = []
    settings = make_settings(folder / "data", dimensions)
    assert predict_masks(settings, folder / "run", tmp_path / "masks", split="test", log=lines.append) == 5
    suffix = ".png" if dimensions == 2 else ".nii.gz"
    masks = sorted((tmp_path / "masks").iterdir())
    assert [mask.name for mask in masks] == [f"test_row_{row:05}{suffix}" for row in range(2, 7)]
    segmenter = load_segmenter(folder / "run")
    image = folder / "data/test" / f"{SECRET}-0{suffix}"
    expected = np.array([0, 10, 20])[segmenter.segment(image).numbers]
    np.testing.assert_array_equal(read(masks[0]), expected)
    if dimensions == 3:
        np.testing.assert_array_equal(nibabel.load(masks[0]).affine, nibabel.load(image).affine)
    assert SECRET not in "".join(lines)


def test_predict_masks_of_files__writes_what_can_be_read(run: tuple[Path, int], tmp_path: Path) -> None:
    folder, dimensions = run
    suffix = ".png" if dimensions == 2 else ".nii.gz"
    good, bad = (folder / "data/val" / f"{SECRET}-0{suffix}", tmp_path / f"broken{suffix}")
    bad.write_bytes(b"not an image")
    lines: list[str] = []
    found = predict_masks_of_files(
        [good, bad, tmp_path / "none.png"], folder / "run", tmp_path / "out", log=lines.append
    )
    assert found == (3, 2)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [good.name]
    assert len(lines) == 2
    assert lines[1].endswith("the file does not exist")
    assert lines[0].startswith("file 2 of 3: ")
    assert not any(str(tmp_path) in line or SECRET in line for line in lines)


def test_predict_masks_of_files__refuses_two_files_of_one_name(run: tuple[Path, int], tmp_path: Path) -> None:
    folder, dimensions = run
    suffix = ".png" if dimensions == 2 else ".nii.gz"
    files = [folder / "data" / split / f"{SECRET}-0{suffix}" for split in ("train", "val")]
    with pytest.raises(SettingsError, match="several files are named"):
        predict_masks_of_files(files, folder / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predict_masks__names_the_row_of_an_image_that_cannot_be_read(run: tuple[Path, int], tmp_path: Path) -> None:
    folder, dimensions = run
    manifest = write_blobs(tmp_path / "data", dimensions)
    suffix = ".png" if dimensions == 2 else ".nii.gz"
    (manifest / "test" / f"{SECRET}-1{suffix}").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"^test\.csv row 3: ") as caught:
        predict_masks(make_settings(manifest, dimensions), folder / "run", tmp_path / "masks", log=lambda _: None)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --classifier, for probabilities, or --segmenter, for masks"),
        (["--classifier", "a", "--segmenter", "b"], "give either"),
        (["--segmenter", "b", "--with-path"], "--with-path is for --classifier"),
        (["--classifier", "a", "--dicom-seg"], "--dicom-seg for --segmenter"),
    ],
)
def test_predict__takes_one_kind_of_model(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["predict", "--out", "x", *arguments])
    assert isinstance(result.exception, SettingsError) or result.exit_code == 2
    assert message in f"{result.exception}{result.output}".replace("\n", " ")
