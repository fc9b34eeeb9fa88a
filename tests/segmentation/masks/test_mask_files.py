from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import permutations, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.masks.mask_files import write_dicom_seg, write_nifti, write_png
from medmoco.segmentation.masks.masks import Classes, check_mask, read_mask
from tests.helpers.dicom_files import save_dicom, with_uids
from tests.helpers.volume_files import AXIAL, CORONAL, SAGITTAL, random_pixels, save_enhanced, save_series

nib = pytest.importorskip("nibabel")

SECRET = "secret-4711"
CLASSES = Classes(("liver", "Läsion é 病変"), (6, 200))
VOLUMES = DataSettings(manifest=Path(), root=".", dimensions=3, window="percentiles")
AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def random_numbers(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def matrix(order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a slightly oblique matrix whose axes run in these directions of RAS, with spacings 0.7, 0.9 and 2.5 mm."""
    affine = np.eye(4)
    turn = nib.eulerangles.euler2mat(0.05, -0.1, 0.07)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * signs) @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = -30.1, 20.2, 10.3
    return affine


def save_image(path: Path, affine: NDArray[np.float64], kind: Any = None, shape: tuple[int, ...] = (3, 4, 5)) -> Any:
    """Write an image whose header has what may describe a patient; return it as loaded."""
    values = np.random.default_rng(1).integers(-500, 900, shape).astype(np.int16)
    image = (kind or nib.Nifti1Image)(values, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    image.header["descrip"] = image.header["aux_file"] = SECRET
    image.header["intent_name"] = "4711"
    image.header["cal_max"] = 500
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(image, path)
    return nib.load(path)


def unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


# ---- NIfTI ----


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_write_nifti__like_the_image_whatever_its_axes(tmp_path: Path, order: Any, signs: Any) -> None:
    image = save_image(tmp_path / "image.nii.gz", matrix(order, signs))
    volume = read_volume(tmp_path / "image.nii.gz")
    numbers = np.where(volume.values > 300, 2, volume.values < 0).astype(np.uint8)
    write_nifti(tmp_path / "mask.nii.gz", numbers, volume.affine, CLASSES, like=tmp_path / "image.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    stored = np.asarray(image.dataobj)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.where(stored > 300, 200, np.where(stored < 0, 6, 0)))
    assert mask.get_data_dtype() == np.uint8
    assert mask.affine.tobytes() == image.affine.tobytes()
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                  "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"):  # fmt: skip
        assert mask.header[field].tobytes() == image.header[field].tobytes(), field
    again = read_mask(str(tmp_path / "mask.nii.gz"), CLASSES, data=VOLUMES)
    np.testing.assert_array_equal(again.numbers, numbers)
    check_mask(again, volume.values.shape, volume.affine)


@pytest.mark.parametrize(("order", "signs"), AXES[::7])
def test_write_nifti__without_an_image_in_ras(tmp_path: Path, order: Any, signs: Any) -> None:
    save_image(tmp_path / "image.nii", matrix(order, signs))
    volume = read_volume(tmp_path / "image.nii")
    numbers = random_numbers(volume.values.shape)
    write_nifti(tmp_path / "mask.nii", numbers, volume.affine, CLASSES)
    mask = nib.load(tmp_path / "mask.nii")
    assert nib.aff2axcodes(mask.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.array([0, 6, 200])[numbers])
    for affine, code in (mask.get_qform(coded=True), mask.get_sform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(affine, volume.affine, atol=1e-5)
    assert mask.header.get_xyzt_units()[0] == "mm"


def test_write_nifti__nothing_of_the_patient_is_copied(tmp_path: Path) -> None:
    save_image(tmp_path / f"{SECRET}.nii", np.eye(4))
    assert unpacked(tmp_path / f"{SECRET}.nii").count(b"4711") == 4
    volume = read_volume(tmp_path / f"{SECRET}.nii")
    numbers = random_numbers(volume.values.shape)
    for name in ("mask.nii", "mask.nii.gz"):
        write_nifti(tmp_path / name, numbers, volume.affine, CLASSES, like=tmp_path / f"{SECRET}.nii")
        assert b"4711" not in unpacked(tmp_path / name)
        assert b"4711" not in (tmp_path / name).read_bytes()
        assert nib.load(tmp_path / name).header["cal_max"] == 0
    first = (tmp_path / "mask.nii.gz").read_bytes()
    assert first[3:8] == bytes(5)  # neither name nor time, so that equal masks have equal files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii", "mask.nii.gz", f"{SECRET}.nii"]


def test_write_nifti__like_other_kinds_of_nifti(tmp_path: Path) -> None:
    affine = matrix((1, 2, 0), (-1, 1, -1))
    big = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine, big), tmp_path / "big.nii")
    save_image(tmp_path / "two.nii.gz", affine, nib.Nifti2Image)
    save_image(tmp_path / "four.nii", affine, shape=(3, 4, 5, 1))
    save_image(tmp_path / "scaled.nii", affine)
    content = bytearray((tmp_path / "scaled.nii").read_bytes())
    struct.pack_into("<2f", content, 112, 0.5, 10)  # slope and intercept
    (tmp_path / "scaled.nii").write_bytes(content)
    for name in ("big.nii", "two.nii.gz", "four.nii", "scaled.nii"):
        volume = read_volume(tmp_path / name)
        numbers = random_numbers(volume.values.shape)
        write_nifti(tmp_path / "mask.nii.gz", numbers, volume.affine, CLASSES, like=tmp_path / name)
        image, mask = nib.load(tmp_path / name), nib.load(tmp_path / "mask.nii.gz")
        assert type(mask) is type(image)
        assert mask.shape == image.shape
        assert mask.affine.tobytes() == image.affine.tobytes()
        np.testing.assert_array_equal(
            read_mask(str(tmp_path / "mask.nii.gz"), CLASSES, data=VOLUMES).numbers, numbers
        )  # fmt: skip


def test_write_nifti__like_a_file_that_is_not_nifti_is_in_ras(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((3, 4, 5)))
    for like in (tmp_path / "image.npy", tmp_path):
        write_nifti(tmp_path / "mask.nii", random_numbers((3, 4, 5)), np.diag([1, 2, 3, 1.0]), CLASSES, like=like)
        np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, np.diag([1, 2, 3, 1.0]))


def test_write_nifti__another_shape_than_the_image(tmp_path: Path) -> None:
    save_image(tmp_path / "image.nii", np.eye(4))
    (tmp_path / "mask.nii").write_bytes(b"before")
    with pytest.raises(ImageError, match="the mask has 3 x 4 x 6 voxels, but its image has 3 x 4 x 5 voxels"):
        write_nifti(tmp_path / "mask.nii", random_numbers((3, 4, 6)), np.eye(4), CLASSES, like=tmp_path / "image.nii")
    assert (tmp_path / "mask.nii").read_bytes() == b"before"


def test_write_nifti__values_above_a_byte(tmp_path: Path) -> None:
    many = Classes(("a", "b"), (1000, 2))
    write_nifti(tmp_path / "mask.nii", numbers := random_numbers((3, 4, 5)), np.eye(4), many)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), np.array([0, 1000, 2])[numbers])


def test_write_nifti__real_labels_again(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/volumes/hippocampus"
    for name in sorted(path.name for path in (folder / "labels").iterdir())[::50]:
        theirs = nib.load(folder / "labels" / name)
        classes = Classes(("posterior", "anterior"), (2, 1))
        mask = read_mask(str(folder / "labels" / name), classes, data=VOLUMES)
        assert mask.affine is not None
        write_nifti(tmp_path / name, mask.numbers, mask.affine, classes, like=folder / "images" / name)
        ours = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert ours.affine.tobytes() == nib.load(folder / "images" / name).affine.tobytes()


# ---- PNG ----


def test_write_png__values_of_the_classes(tmp_path: Path) -> None:
    numbers = random_numbers((5, 7))
    data = VOLUMES.model_copy(update={"dimensions": 2})
    for values, dtype in (((6, 200), np.uint8), ((6, 1000), np.uint16), ((6, 40_000), np.uint16)):
        classes = Classes(("a", "b"), values)
        write_png(tmp_path / "mask.png", numbers, classes)
        stored = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, np.array([0, *values])[numbers])
        np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png"), classes, data=data).numbers, numbers)
    with pytest.raises(SettingsError, match="PNG stores no negative values"):
        write_png(tmp_path / "mask.png", numbers, Classes(("a", "b"), (1, -1)))
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


# ---- DICOM segmentations ----


def voxels(file: Path) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Yield the RAS coordinates and the segment of every marked pixel, by equation C.7.6.2.1-1 of DICOM PS3.3."""
    dataset = pydicom.dcmread(file)
    shared_groups = dataset.SharedFunctionalGroupsSequence[0]
    cosines = [float(x) for x in shared_groups.PlaneOrientationSequence[0].ImageOrientationPatient]
    down, across = (float(x) for x in shared_groups.PixelMeasuresSequence[0].PixelSpacing)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        start = [float(x) for x in groups.PlanePositionSequence[0].ImagePositionPatient]
        segment = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for row, column in np.argwhere(frame).tolist():
            lps = [start[i] + cosines[i] * across * column + cosines[3 + i] * down * row for i in range(3)]
            yield np.array([-lps[0], -lps[1], lps[2]]), segment


def assert_same_voxels(file: Path, numbers: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    inverse = np.linalg.inv(affine)
    found = np.zeros_like(numbers)
    for point, segment in voxels(file):
        index = inverse @ [*point, 1.0]
        x, y, z = np.rint(index[:3]).astype(int)
        assert np.abs(index[:3] - [x, y, z]).max() < 0.01
        assert not found[x, y, z]
        found[x, y, z] = segment
    np.testing.assert_array_equal(found, numbers)


def sparse_numbers(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a mask with few marked voxels, also at the corners, and without any in some slices."""
    numbers = np.where(np.random.default_rng(0).random(shape) < 2000 / np.prod(shape), 1, 0).astype(np.uint8)
    numbers[0, 0, 0], numbers[-1, -1, -1], numbers[0, -1, 0] = 1, 2, 2
    numbers[1] = numbers[:, :, 1] = 0
    return numbers


@pytest.mark.parametrize("name", ["mr_series/HFS", "mr_series/HFDR", "ct_series"])
def test_write_dicom_seg__real_series(shared: Path, tmp_path: Path, name: str) -> None:
    import highdicom as hd

    folder = shared / "data/volumes" / name
    volume = read_volume(folder)
    numbers = sparse_numbers(volume.values.shape)
    if name == "ct_series":
        with pytest.raises(ImageError, match="the image's header has no SOPClassUID, to which"):
            write_dicom_seg(tmp_path / "seg.dcm", numbers, folder, CLASSES)
        folder = with_uids(folder, tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", numbers, folder, CLASSES)
    assert_same_voxels(tmp_path / "seg.dcm", numbers, volume.affine)

    seg = hd.seg.segread(tmp_path / "seg.dcm")
    for number, label in enumerate(CLASSES.names, 1):
        described = seg.get_segment_description(number)
        assert described.segment_label == label
        assert described.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        assert described.SegmentAlgorithmName == "medmoco"
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    pixels = seg.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    assert seg.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == headers[0].StudyInstanceUID
    assert seg.SeriesInstanceUID != headers[0].SeriesInstanceUID
    inverse = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ volume.affine)
    for plane, header in zip(pixels, headers, strict=True):  # the plane of each slice is that of its file
        x, y, z = np.rint(inverse @ [*header.ImagePositionPatient, 1.0])[:3].astype(int)
        assert plane[0, 0] == numbers[x, y, z]
        assert plane.sum() == (numbers[x].sum() if name != "ct_series" else numbers[:, :, z].sum())
    geometry = seg.get_volume(combine_segments=True, rtol=1e-3)
    assert geometry.array.sum() == numbers.sum()


@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, SAGITTAL, (-1, 0, 0, 0, -1, 0)])
def test_write_dicom_seg__made_series_in_any_order(tmp_path: Path, cosines: Any) -> None:
    names = [f"{number}.dcm" for number in (3, 0, 4, 1, 2)]
    save_series(
        tmp_path / "series", random_pixels(), cosines=cosines, names=names, SOPInstanceUID=lambda k: f"1.2.3.{k}",
        StudyInstanceUID="1.2", FrameOfReferenceUID="1.2.9", SliceThickness=None,
    )  # fmt: skip
    volume = read_volume(tmp_path / "series")
    numbers = random_numbers(volume.values.shape)
    write_dicom_seg(tmp_path / "seg.dcm", numbers, tmp_path / "series", CLASSES, series="1.2.3")
    assert_same_voxels(tmp_path / "seg.dcm", numbers, volume.affine)


def test_write_dicom_seg__enhanced_file(tmp_path: Path) -> None:
    positions = [(0, 0, 2.5 * k) for k in (2, 0, 3, 1)]
    save_enhanced(
        tmp_path / "a.dcm", random_pixels(4), positions, SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2",
        FrameOfReferenceUID="1.2.9",
    )  # fmt: skip
    volume = read_volume(tmp_path / "a.dcm")
    numbers = random_numbers(volume.values.shape)
    write_dicom_seg(tmp_path / "seg.dcm", numbers, tmp_path / "a.dcm", CLASSES)
    assert_same_voxels(tmp_path / "seg.dcm", numbers, volume.affine)


def made_series(folder: Path, **tags: Any) -> Path:
    save_series(folder, random_pixels(), **{
        "SOPInstanceUID": lambda k: f"1.2.3.{k}", "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.2.9", **tags,
    })  # fmt: skip
    return folder


def test_write_dicom_seg__copies_only_what_identifies_the_study(tmp_path: Path) -> None:
    folder = made_series(
        tmp_path / "series", PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100", PatientSex="U",
        PatientBirthDate="19500101", PatientComments=SECRET, PatientAddress=SECRET, PatientWeight="70",
        InstitutionName=SECRET, StudyDescription=SECRET, OperatorsName=SECRET, Manufacturer=SECRET,
        DeviceSerialNumber=SECRET, AccessionNumber="A1", PatientID="P1",
    )  # fmt: skip
    write_dicom_seg(tmp_path / "seg.dcm", random_numbers((7, 6, 5)), folder, CLASSES)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert (dataset.PatientID, dataset.AccessionNumber, dataset.PatientBirthDate) == ("P1", "A1", "19500101")
    assert dataset.PatientSex == ""
    assert b"4711" not in (tmp_path / "seg.dcm").read_bytes()
    assert "PatientWeight" not in dataset
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_write_dicom_seg__without_any_class(tmp_path: Path) -> None:
    import highdicom as hd

    folder = made_series(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", np.zeros((7, 6, 5), np.uint8), folder, CLASSES)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.number_of_segments == 2
    assert not seg.pixel_array.any()


def test_write_dicom_seg__of_a_radiograph(tmp_path: Path) -> None:
    import highdicom as hd

    pixels = random_pixels(1, 8, 9)[0]
    save_dicom(
        tmp_path / "a.dcm", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.1", SOPInstanceUID="1.2.3.4", Modality="CR",
        StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", PixelSpacing=[0.1, 0.1], FrameOfReferenceUID="",
    )  # fmt: skip
    numbers = random_numbers((8, 9))
    write_dicom_seg(tmp_path / "seg.dcm", numbers, tmp_path / "a.dcm", CLASSES)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    found = seg.get_pixels_by_source_instance(["1.2.3.4"], combine_segments=True)
    np.testing.assert_array_equal(found[0], numbers)
    with pytest.raises(ImageError, match="the mask has 8 x 9 pixels, but its image has 9 x 8 pixels"):
        write_dicom_seg(tmp_path / "seg.dcm", numbers.T, tmp_path / "a.dcm", CLASSES)
    save_enhanced(
        tmp_path / "b.dcm", random_pixels(4), [(0, 0, k) for k in range(4)], SOPInstanceUID="1.2.3.4",
        StudyInstanceUID="1.2", FrameOfReferenceUID="1.2.9",
    )  # fmt: skip
    with pytest.raises(ImageError, match="the image has several frames"):
        write_dicom_seg(tmp_path / "seg.dcm", random_numbers((6, 7)), tmp_path / "b.dcm", CLASSES)


@pytest.mark.parametrize(
    ("tags", "shape", "message"),
    [
        ({"StudyInstanceUID": ""}, (7, 6, 5), "header has no StudyInstanceUID"),
        ({"FrameOfReferenceUID": ""}, (7, 6, 5), "header has no FrameOfReferenceUID"),
        ({"SOPClassUID": "1.2.3.4.5"}, (7, 6, 5), r"no DICOM segmentation can be made for the image \("),
        ({}, (7, 6, 4), "the mask has 7 x 6 x 4 voxels, but its image has 7 x 6 x 5 voxels"),
    ],
)
def test_write_dicom_seg__what_cannot_be_written(tmp_path: Path, tags: Any, shape: Any, message: str) -> None:
    folder = made_series(tmp_path / "series", PatientName=SECRET, **tags)
    with pytest.raises(ImageError, match=message) as refused:
        write_dicom_seg(tmp_path / "seg.dcm", random_numbers(shape), folder, CLASSES)
    assert SECRET not in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 4
    assert not (tmp_path / "seg.dcm").exists()


def test_write_dicom_seg__limits_and_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_series(tmp_path / "series")
    numbers = random_numbers((7, 6, 5))
    if find_spec("highdicom"):
        with pytest.raises(ImageError, match=r"exceed data\.max_bytes"):
            write_dicom_seg(tmp_path / "seg.dcm", numbers, folder, CLASSES, limits=Limits(max_bytes=100))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(SettingsError, match=r"DICOM segmentations need highdicom: pip install medmoco\[segmentation\]"):
        write_dicom_seg(tmp_path / "seg.dcm", numbers, folder, CLASSES)
