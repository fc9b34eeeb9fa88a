"""Slices of DICOM files: which are volumes, polarity, padding, tables and deflated files."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.data.volume_io.frames import frame_values, frames_of, read_header, series_of
from medmoco.data.volume_io.reading import inspect_volume, read_volume
from tests.helpers.dicom_files import table
from tests.helpers.volume_files import random_pixels, save_enhanced, save_series, save_slice, volume_refusal

PIXELS = random_pixels()


def test_frames__series_of_a_file(tmp_path: Path) -> None:
    path = save_slice(tmp_path / "a", PIXELS[0], (0, 0, 0))
    assert series_of(path) == "1.2.3"
    dataset = pydicom.dcmread(path)
    del dataset.SeriesInstanceUID
    dataset.save_as(path)
    assert series_of(path) == ""


def test_frames__inverted_polarity_of_mr(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS, Modality="MR", PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0)
    volume = read_volume(tmp_path / "a")
    np.testing.assert_array_equal(volume.values[::-1, ::-1].T, 4095 - PIXELS.astype(int))
    assert volume.notices == ("MONOCHROME1: its values are reflected, so that brighter is larger",)
    signed = (PIXELS.astype(np.int32) - 2048).astype(np.int16)
    save_series(tmp_path / "b", signed, Modality="MR", PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0)
    np.testing.assert_array_equal(read_volume(tmp_path / "b").values[::-1, ::-1].T, -1 - signed)


@pytest.mark.parametrize("tags", [{"Modality": "CT"}, {"Modality": "PT"}, {"Modality": "MR", "RescaleType": "mm2/s"}])
def test_frames__values_with_a_unit_keep_their_sign(tmp_path: Path, tags: dict[str, str]) -> None:
    save_series(tmp_path / "a", PIXELS, PhotometricInterpretation="MONOCHROME1", **tags)
    volume = read_volume(tmp_path / "a")
    np.testing.assert_array_equal(volume.values[::-1, ::-1].T, PIXELS.astype(int) - 1024)
    assert volume.notices == ()


def test_frames__padding_gets_the_smallest_other_value(tmp_path: Path) -> None:
    pixels = PIXELS.copy()
    pixels[:, 0] = 4000
    pixels[:, 1:] = np.clip(pixels[:, 1:], 5, 3999)
    save_series(tmp_path / "a", pixels, PixelPaddingValue=4000)
    slices = read_volume(tmp_path / "a").values[::-1, ::-1].T + 1024
    for values, stored in zip(slices, pixels, strict=True):
        np.testing.assert_array_equal(values[1:], stored[1:])
        assert set(values[0].tolist()) == {float(stored[1:].min())}


def test_frames__table(tmp_path: Path) -> None:
    entries = [100, 300, 200, 900]
    tags = {"ModalityLUTSequence": table(4, 0, 16, entries), "RescaleSlope": None, "RescaleIntercept": None}
    pixels = np.tile(np.array([[0, 1, 2, 3, 4]], np.uint16), (3, 2, 1))
    save_series(tmp_path / "a", pixels, **tags)
    assert read_volume(tmp_path / "a").values[::-1, 0, 0].tolist() == [100, 300, 200, 900, 900]


def test_frames__deflated(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS)
    expected = read_volume(tmp_path / "a").values
    save_series(tmp_path / "b", PIXELS)
    for file in (tmp_path / "b").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(file)
    np.testing.assert_array_equal(read_volume(tmp_path / "b").values, expected)


def test_frames__are_those_of_pydicom(tmp_path: Path) -> None:
    path = save_enhanced(tmp_path / "a", PIXELS, [(0, 0, k) for k in range(5)], slopes=[1.5] * 5, intercepts=range(5))
    frames = frames_of(read_header(path, DEFAULT_LIMITS), DEFAULT_LIMITS)
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
    for k, frame in enumerate(frames):
        assert frame.position.tolist() == [0, 0, k]
        np.testing.assert_array_equal(frame_values(frame, DEFAULT_LIMITS), PIXELS[k] * 1.5 + k)


def test_frames__films_are_not_volumes(tmp_path: Path) -> None:
    path = save_enhanced(tmp_path / "a", PIXELS, [(0, 0, k) for k in range(5)])
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[4]
    dataset.save_as(path)
    assert "5 frames have 4 descriptions" in volume_refusal(path)
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(path)
    assert "5 frames have no positions" in volume_refusal(path)
    path = save_enhanced(tmp_path / "b", PIXELS, [(0, 0, 0)] * 5)
    assert [fault.kind for fault in inspect_volume(path).faults] == ["duplicate_slices"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("emri_small.dcm", "10 frames have no positions"),
        ("liver_1frame.dcm", "a segmentation, not an image"),
        ("rtdose.dcm", "a radiotherapy dose, not an image"),
        ("examples_ybr_color.dcm", "colours"),
        ("CT_small.dcm", "a single slice, not a volume"),
        ("RG1_UNCR.dcm", "a single slice, not a volume"),
    ],
)
def test_frames__real_files_that_are_not_volumes(shared: Path, name: str, words: str) -> None:
    assert words in volume_refusal(shared / "data/dicom" / name)


def test_limits__of_a_file(tmp_path: Path) -> None:
    path = save_enhanced(tmp_path / "a", PIXELS, [(0, 0, k) for k in range(5)])
    assert "data.max_frames" in volume_refusal(path, limits=Limits(max_frames=4))
    assert "data.max_pixels" in volume_refusal(path, limits=Limits(max_pixels=41))
