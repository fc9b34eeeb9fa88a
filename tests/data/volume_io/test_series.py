"""DICOM series: order, orientation and rescale against two oracles, and every fault of their slices."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io import series
from medmoco.data.volume_io.reading import inspect_volume, read_volume
from tests.helpers.volume_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    assert_voxels,
    compress,
    dicom_voxels,
    normal_of,
    random_pixels,
    save_enhanced,
    save_series,
    save_slice,
    volume_refusal,
)

PIXELS = random_pixels()
LARGE = random_pixels(5, 40, 48)  # JPEG 2000 needs 32 pixels
OBLIQUE = (0.9, 0.3, 0.316227766, -0.348155312, 0.93, 0.108)


def perpendicular(cosines: tuple[float, ...]) -> tuple[float, ...]:
    """Return cosines made exactly perpendicular and of unit length."""
    row = np.array(cosines[:3]) / np.linalg.norm(cosines[:3])
    column = np.array(cosines[3:]) - row * (row @ np.array(cosines[3:]))
    return (*row, *(column / np.linalg.norm(column)))


def kinds(path: Path, **options: Any) -> list[str]:
    """Return the faults of a volume, after checking that reading it refuses the first one and gives the warnings."""
    found = inspect_volume(path, **options).faults
    faults = [fault for fault in found if fault.severity == "fault"]
    if faults:
        assert volume_refusal(path, **options) == faults[0].text
    else:
        assert read_volume(path, **options).notices == tuple(fault.text for fault in found)
    return [fault.kind for fault in found]


# ---- real series ----


@pytest.fixture
def volumes(shared: Path) -> Path:
    return shared / "data/volumes"


@pytest.mark.parametrize(("name", "position"), [("HFS", "HFS"), ("HFDR", "HFDR")])
def test_series__real_mr_against_plain_loops(volumes: Path, name: str, position: str) -> None:
    files = sorted((volumes / "mr_series" / name).iterdir())
    assert pydicom.dcmread(files[0], stop_before_pixels=True).PatientPosition == position
    volume = read_volume(volumes / "mr_series" / name)
    assert (volume.values.shape, volume.slice_axis, volume.modality) == ((35, 256, 256), 0, "MR")
    np.testing.assert_allclose(volume.spacing, (4.8, 1.015625, 1.015625), atol=1e-4)  # SliceThickness is 4
    assert_voxels(volume, dicom_voxels(files, every=37), 35 * 256 * 256 // 37)


def test_series__real_ct_against_plain_loops(volumes: Path) -> None:
    files = sorted((volumes / "ct_series").iterdir())
    volume = read_volume(volumes / "ct_series")
    assert (volume.values.shape, volume.slice_axis, volume.modality) == ((512, 512, 20), 2, "CT")
    np.testing.assert_allclose(volume.spacing, (0.9765625, 0.9765625, 2.0))  # SliceThickness is 3
    assert_voxels(volume, dicom_voxels(files, every=997), 20 * 512 * 512 // 997)


@pytest.mark.parametrize("name", ["mr_series/HFS", "mr_series/HFDR", "ct_series"])
def test_series__real_series_as_simpleitk(volumes: Path, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    headers = [(pydicom.dcmread(file, stop_before_pixels=True), file) for file in (volumes / name).iterdir()]
    normal = normal_of([float(number) for number in headers[0][0].ImageOrientationPatient])
    headers.sort(key=lambda pair: float(np.array(pair[0].ImagePositionPatient, float) @ normal))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for _, file in headers])
    theirs = sitk.DICOMOrient(reader.Execute(), "RAS")
    ours = read_volume(volumes / name)
    np.testing.assert_array_equal(ours.values, sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.spacing, theirs.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(ours.affine[:3, 3] * [-1, -1, 1], theirs.GetOrigin(), atol=1e-3)


def test_series__names_and_instance_numbers_do_not_matter(volumes: Path, tmp_path: Path) -> None:
    files = sorted((volumes / "mr_series/HFS").iterdir())
    for at, file in enumerate(np.random.default_rng(0).permutation(files)):
        dataset = pydicom.dcmread(file)
        dataset.InstanceNumber = at + 1
        dataset.save_as(tmp_path / f"{at:03d}")
    volume, other = read_volume(volumes / "mr_series/HFS"), read_volume(tmp_path)
    np.testing.assert_array_equal(volume.values, other.values)
    np.testing.assert_array_equal(volume.affine, other.affine)


# ---- made series ----


@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, SAGITTAL, perpendicular(OBLIQUE), (-1, 0, 0, 0, -1, 0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_series__every_orientation(tmp_path: Path, cosines: tuple[float, ...], reverse: bool) -> None:
    along = [2.5 * k for k in range(5)]
    files = save_series(tmp_path / "a", PIXELS, cosines=cosines, along=along[::-1] if reverse else along)
    volume = read_volume(tmp_path / "a")
    assert volume.slice_axis == int(np.abs(normal_of(cosines)).argmax())
    assert volume.spacing[volume.slice_axis] == pytest.approx(2.5)
    assert sorted(volume.spacing) == pytest.approx([0.7, 0.8, 2.5])
    assert_voxels(volume, dicom_voxels(files), PIXELS.size)
    assert volume.notices == ()


def test_series__header_agrees_with_volume(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS, cosines=SAGITTAL)
    header, volume = inspect_volume(tmp_path / "a"), read_volume(tmp_path / "a")
    assert header.shape == volume.values.shape == (5, 7, 6)
    assert (header.slice_axis, header.slices, header.modality) == (0, 5, "CT")
    assert header.spacing == volume.spacing
    np.testing.assert_array_equal(header.affine, volume.affine)
    assert header.files == tuple(files)


def test_series__inspecting_reads_no_voxels(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    expected = inspect_volume(tmp_path / "a")
    for file in files:
        file.write_bytes(file.read_bytes()[: -PIXELS[0].nbytes])
    assert inspect_volume(tmp_path / "a").shape == expected.shape
    assert "ends inside its pixel data" in volume_refusal(tmp_path / "a")


def test_series__each_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_series(tmp_path / "a", PIXELS)
    read, original = [], pydicom.dcmread

    def counted(*args: Any, **options: Any) -> Any:
        read.append(1)
        return original(*args, **options)

    monkeypatch.setattr(pydicom, "dcmread", counted)
    read_volume(tmp_path / "a")
    assert len(read) == len(PIXELS)


def test_series__rescale_of_each_slice(tmp_path: Path) -> None:
    files = save_series(
        tmp_path / "a", PIXELS, Modality="PT",
        RescaleSlope=lambda k: f"{0.37 * (k + 1):.6g}", RescaleIntercept=lambda k: k - 2,
    )  # fmt: skip
    assert_voxels(read_volume(tmp_path / "a"), dicom_voxels(files), PIXELS.size)


def test_series__signed_and_stray_bits(tmp_path: Path) -> None:
    signed = (PIXELS.astype(np.int32) - 2048).astype(np.int16)
    files = save_series(tmp_path / "a", signed)
    volume = read_volume(tmp_path / "a")
    assert volume.values.min() < -1024
    assert_voxels(volume, dicom_voxels(files), PIXELS.size)
    stray = ((signed.view(np.uint16) & 0x0FFF) | 0x5000).view(np.int16)
    save_series(tmp_path / "b", stray)
    np.testing.assert_array_equal(read_volume(tmp_path / "b").values, volume.values)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_series__compressed(tmp_path: Path, syntax: str) -> None:
    save_series(tmp_path / "a", LARGE)
    expected = read_volume(tmp_path / "a").values
    for file in (tmp_path / "a").iterdir():
        compress(file, syntax)
    np.testing.assert_array_equal(read_volume(tmp_path / "a").values, expected)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_series__enhanced_multi_frame_with_shuffled_frames(tmp_path: Path, syntax: str) -> None:
    save_series(tmp_path / "a", LARGE, cosines=CORONAL, RescaleSlope=lambda k: k + 1, RescaleIntercept=lambda k: k)
    expected = read_volume(tmp_path / "a")
    order = [3, 0, 4, 1, 2]
    positions = [np.array((-20.0, -30.0, 40.0)) + 2.5 * k * normal_of(CORONAL) for k in order]
    path = save_enhanced(
        tmp_path / "b", LARGE[order], positions, cosines=CORONAL, syntax=syntax,
        slopes=[k + 1 for k in order], intercepts=order,
    )  # fmt: skip
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.values, expected.values)
    np.testing.assert_allclose(volume.affine, expected.affine)
    assert (volume.slice_axis, volume.modality) == (1, "MR")


def test_series__of_several_multi_frame_files(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, 3.0 * k) for k in range(5)]
    whole = read_volume(save_enhanced(tmp_path / "whole", PIXELS, positions))
    (tmp_path / "parts").mkdir()
    for name, part in (("a", slice(3, 5)), ("b", slice(0, 3))):
        save_enhanced(tmp_path / "parts" / name, PIXELS[part], positions[part])
    np.testing.assert_array_equal(read_volume(tmp_path / "parts").values, whole.values)


# ---- which series ----


def test_series__is_chosen_in_a_folder_of_several(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS)
    save_series(tmp_path / "a", PIXELS[::-1], SeriesInstanceUID="1.2.4", names=[f"b{k}" for k in range(5)])
    message = volume_refusal(tmp_path / "a")
    assert "2 DICOM series" in message
    assert "SeriesInstanceUID" in message
    first, second = (read_volume(tmp_path / "a", series=uid).values for uid in ("1.2.3", "1.2.4"))
    np.testing.assert_array_equal(first, second[..., ::-1])
    assert len(inspect_volume(tmp_path / "a", series="1.2.4").files) == 5
    message = volume_refusal(tmp_path / "a", series="1.2.5")
    assert "none of the 10 DICOM files" in message
    assert "1.2.5" not in message


def test_series__files_of_a_folder_are_opened_once_for_all_its_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    found = series.series_of
    monkeypatch.setattr(series, "series_of", lambda path: opened.append(path) or found(path))
    for uid in ("1.1", "1.2", "1.3"):
        save_series(tmp_path / "a", PIXELS, SeriesInstanceUID=uid, names=[f"{uid}-{k}" for k in range(5)])
    for uid in ("1.1", "1.2", "1.3"):
        assert len(inspect_volume(tmp_path / "a", series=uid).files) == 5
    assert len(opened) == 15
    save_series(tmp_path / "a", PIXELS, SeriesInstanceUID="1.4", names=[f"1.4-{k}" for k in range(5)])
    assert len(inspect_volume(tmp_path / "a", series="1.4").files) == 5


def test_series__file_of_another_series(tmp_path: Path) -> None:
    path = save_enhanced(tmp_path / "b", PIXELS, [(0, 0, k) for k in range(5)])
    assert read_volume(path, series="1.2.3").values.shape == (7, 6, 5)
    assert "does not belong to the series" in volume_refusal(path, series="1.2.4")


def test_series__other_files_are_counted(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS)
    (tmp_path / "a/notes.txt").write_text("notes")
    (tmp_path / "a/below").mkdir()
    report = pydicom.dcmread(tmp_path / "a/000.dcm")
    for name in ("Rows", "Columns", "PixelData"):
        del report[name]
    report.save_as(tmp_path / "a/report.dcm")
    save_slice(tmp_path / "a/dose.dcm", PIXELS[0], (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    assert kinds(tmp_path / "a") == ["other_files"]
    assert "3 other files" in read_volume(tmp_path / "a").notices[0]
    (tmp_path / "empty").mkdir()
    assert "contains no DICOM images" in volume_refusal(tmp_path / "empty")


def test_series__damaged_file_refuses_the_series(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    files[2].write_bytes(files[2].read_bytes()[:150])
    assert "obtain it again" in volume_refusal(tmp_path / "a")


# ---- faults ----


def test_faults__removed_slices(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", random_pixels(12), cosines=perpendicular(OBLIQUE))
    for k in (3, 7, 8):
        files[k].unlink()
    assert kinds(tmp_path / "a") == ["missing_slices"]
    assert volume_refusal(tmp_path / "a").startswith("3 slices are missing: most gaps are 2.5 mm, but 2 are larger")


def test_faults__removed_slice_of_a_real_series(volumes: Path, tmp_path: Path) -> None:
    shutil.copytree(volumes / "mr_series/HFDR", tmp_path / "a")
    (tmp_path / "a/011.dcm").unlink()
    assert kinds(tmp_path / "a") == ["missing_slices"]


def test_faults__duplicated_slices(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", random_pixels(8))
    for k in (2, 5):
        shutil.copy(files[k], tmp_path / f"a/copy{k}")
    assert kinds(tmp_path / "a") == ["duplicate_slices"]
    assert volume_refusal(tmp_path / "a").startswith("2 of its 10 slices have the position of another")
    files[6].unlink()
    assert kinds(tmp_path / "a") == ["duplicate_slices", "missing_slices"]
    save_series(tmp_path / "b", PIXELS, along=[0] * 5)
    assert kinds(tmp_path / "b") == ["duplicate_slices"]


@pytest.mark.parametrize(
    ("along", "expected"),
    [
        ([0, 1, 2, 3.2, 4.2, 5.2], ["uneven_spacing"]),  # one slice is displaced by more than the tolerance
        ([0, 1, 2, 3.14, 4.1, 5.1], []),  # 0.15 mm are accepted at a spacing of 1 mm
        ([0, 0.1, 0.2, 0.4, 0.5, 0.6], ["missing_slices"]),  # less than 0.1 mm more, but a whole slice
        ([0, 5, 10, 12.5, 15, 17.5, 20], ["missing_slices"]),  # two spacings
        ([0, 1, 2, 3, 4.5, 6.5, 8], ["missing_slices", "uneven_spacing"]),
        ([0.0, 1.2, 2.5, 3.8, 5.0, 6.2], []),  # 1.25 mm rounded to a tenth
        (np.cumsum([1.0] * 16 + [1.14] * 16).tolist(), ["uneven_spacing"]),  # within the tolerance, but adding up
    ],
)
def test_faults__spacing(tmp_path: Path, along: list[float], expected: list[str]) -> None:
    save_series(tmp_path / "a", random_pixels(len(along)), along=along, cosines=SAGITTAL)
    assert kinds(tmp_path / "a") == expected


@pytest.mark.parametrize(("degrees", "expected"), [(15, ["gantry_tilt"]), (-1, ["gantry_tilt"]), (0.4, [])])
def test_faults__gantry_tilt(tmp_path: Path, degrees: float, expected: list[str]) -> None:
    shear = np.tan(np.radians(degrees)) * 2.5
    files = save_series(tmp_path / "a", random_pixels(40), shifts=[(0, k * shear, 0) for k in range(40)])
    assert kinds(tmp_path / "a") == expected
    if expected:
        assert f"{abs(degrees)}.0 degrees" in volume_refusal(tmp_path / "a")
    else:  # a tilt that is accepted stays in the matrix
        assert_voxels(read_volume(tmp_path / "a"), dicom_voxels(files), 40 * 42)


def test_faults__rounded_positions_are_not_a_tilt(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS[:2], shifts=[(0, 0.04, 0), (0, -0.04, 0)])
    assert kinds(tmp_path / "a") == []


def test_faults__shifted_slice(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS, shifts=[(0.5 * (k == 2), 0, 0) for k in range(5)])
    assert kinds(tmp_path / "a") == ["shifted_slices"]


def test_faults__tilted_slice(tmp_path: Path) -> None:
    tilted = [1, 0, 0, 0, float(np.cos(0.02)), float(np.sin(0.02))]
    save_series(tmp_path / "a", PIXELS, ImageOrientationPatient=lambda k: tilted if k == 2 else list(AXIAL))
    assert kinds(tmp_path / "a") == ["mixed_orientations"]
    assert volume_refusal(tmp_path / "a").startswith("1 of its 5 slices")


def test_faults__localisers(tmp_path: Path) -> None:
    by_number = (AXIAL, AXIAL, CORONAL, SAGITTAL, SAGITTAL)
    save_series(tmp_path / "a", PIXELS, ImageOrientationPatient=lambda k: list(by_number[k]))
    assert kinds(tmp_path / "a") == ["localiser"]
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save_series(tmp_path / "b", PIXELS, ImageType=lambda k: kind if k < 2 else ["ORIGINAL", "PRIMARY", "AXIAL"])
    assert kinds(tmp_path / "b") == ["localiser"]
    assert volume_refusal(tmp_path / "b").startswith("2 of its 5 slices")


def test_faults__mosaic(tmp_path: Path) -> None:
    save_series(tmp_path / "a", PIXELS, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    assert kinds(tmp_path / "a") == ["mosaic"]


def test_faults__sizes(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    save_slice(files[4], PIXELS[0, :, :5], (-20, -30, 50))
    assert kinds(tmp_path / "a") == ["mixed_sizes"]
    save_series(tmp_path / "b", PIXELS, PixelSpacing=lambda k: [0.8, 0.7 + 0.01 * (k == 3)])
    assert kinds(tmp_path / "b") == ["mixed_sizes"]


def test_faults__single_slice(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    assert kinds(files[1]) == ["single_slice"]  # the other files of its folder are not read
    save_series(tmp_path / "b", PIXELS[:1])
    assert kinds(tmp_path / "b") == ["single_slice"]


def without(name: str) -> Callable[[pydicom.Dataset], None]:
    return lambda dataset: dataset.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("ImagePositionPatient"), "lacks a valid ImagePositionPatient"),
        (without("ImageOrientationPatient"), "lacks a valid ImageOrientationPatient"),
        (without("PixelSpacing"), "lacks a valid PixelSpacing"),
        (lambda d: setattr(d, "ImagePositionPatient", [1, 2]), "lacks a valid ImagePositionPatient"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular"),
        (lambda d: setattr(d, "PixelSpacing", [0, 1]), "PixelSpacing is not positive"),
        (lambda d: setattr(d, "BitsStored", 17), "only 1 to 16"),
        (lambda d: setattr(d, "PhotometricInterpretation", "PALETTE COLOR"), "colours"),
    ],
)
def test_faults__unusable_slice(tmp_path: Path, change: Callable[[pydicom.Dataset], None], words: str) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    dataset = pydicom.dcmread(files[3])
    change(dataset)
    dataset.save_as(files[3])
    assert words in volume_refusal(tmp_path / "a")


def test_limits__of_a_series(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", PIXELS)
    total = sum(file.stat().st_size for file in files)
    assert read_volume(tmp_path / "a", limits=Limits(total, 42, 5)).values.size == 210
    assert "data.max_bytes" in volume_refusal(tmp_path / "a", limits=Limits(total - 1, 42, 5))
    assert "data.max_pixels" in volume_refusal(tmp_path / "a", limits=Limits(total, 41, 5))
    assert "data.max_frames" in volume_refusal(tmp_path / "a", limits=Limits(total, 42, 4))
