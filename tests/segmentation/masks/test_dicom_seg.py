"""DICOM segmentations that highdicom writes frame by frame, and where their pixels must land."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medmoco.config import DataSettings
from medmoco.data.image_io.limits import DEFAULT_LIMITS
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.masks.image_grid import ImageGrid, grid_of_image, grid_of_volume
from medmoco.segmentation.masks.mask_files import _header, write_dicom_seg
from medmoco.segmentation.masks.masks import Classes, check_mask, distinct_values, read_mask, unnamed_classes
from tests.helpers.dicom_files import save_dicom, with_uids
from tests.helpers.volume_files import AXIAL, random_pixels, save_enhanced, save_series, save_slice

hd = pytest.importorskip("highdicom")

SECRET = "secret-4711"
ORGANS = unnamed_classes((1, 2))
VOLUMES = DataSettings(manifest=Path(), root=".", dimensions=3, window="percentiles")
IMAGES = DataSettings(manifest=Path(), root=".")
UIDS = {"SOPInstanceUID": lambda k: f"1.2.3.{k}", "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.2.9"}
START = (-20.0, -30.0, 40.0)  # of the first slice of `save_series`, LPS
PIXEL = (0.8, 0.7)
SHAPE = (7, 6, 5)


def random_numbers(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


def planes_of(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return axial planes (K, rows, columns) of numbers in RAS: columns go to the left, rows to the back."""
    return np.ascontiguousarray(numbers[::-1, ::-1].transpose(2, 1, 0))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    save_series(tmp_path / "series", random_pixels(), **UIDS)
    return tmp_path / "series"


def write_seg(
    file: Path,
    images: Sequence[Path],
    planes: NDArray[Any],
    *,
    kind: str = "BINARY",
    positions: Sequence[Sequence[float]] | None = None,
    cosines: Sequence[float] = AXIAL,
    pixel: Sequence[float] = PIXEL,
    segments: int = 2,
    **tags: Any,
) -> Path:
    """Write planes (K, H, W), or (K, H, W, S) of segments that may overlap; by default those of `images`, in order."""
    places = {}
    if positions is not None:
        places = {
            "plane_positions": [hd.PlanePositionSequence("PATIENT", list(place)) for place in positions],
            "plane_orientation": hd.PlaneOrientationSequence("PATIENT", list(cosines)),
            "pixel_measures": hd.PixelMeasuresSequence(pixel_spacing=list(pixel), slice_thickness=2.5),
        }
    descriptions = [
        hd.seg.SegmentDescription(
            number, f"{SECRET}-{number}", codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number in range(1, segments + 1)
    ]
    written = hd.seg.Segmentation(
        [_header(image) for image in images], planes, kind, descriptions, generate_uid(), 1, generate_uid(), 1, "a",
        "b", "c", "d", **places,
    )  # fmt: skip
    for name, value in tags.items():
        setattr(written, name, value)
    written.save_as(file)
    return file


def volume_mask(file: Path, series: Path, classes: Classes = ORGANS) -> NDArray[np.uint8]:
    volume = read_volume(series)
    mask = read_mask(str(file), classes, data=VOLUMES, grid=grid_of_volume(volume))
    check_mask(mask, volume.values.shape, volume.affine)
    return mask.numbers


def refusal(file: Path, grid: ImageGrid, data: DataSettings = VOLUMES) -> str:
    with pytest.raises(ImageError) as refused:
        read_mask(str(file), ORGANS, data=data, grid=grid)
    message = str(refused.value)
    assert "4711" not in message
    assert "1.2.3" not in message
    assert str(file) not in message
    assert len(message.splitlines()) <= 4
    return message


def positions_of(order: Sequence[int], shift: Sequence[float] = (0, 0, 0)) -> list[list[float]]:
    return [[START[0] + shift[0], START[1] + shift[1], START[2] + shift[2] + 2.5 * k] for k in order]


# ---- volumes ----


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 4, 1, 2)])
def test_read_mask__frames_land_by_their_position(
    tmp_path: Path, series: Path, kind: str, order: Sequence[int]
) -> None:
    numbers = random_numbers()
    planes = planes_of(numbers)[list(order)]
    if kind == "FRACTIONAL":
        planes = np.stack([planes == 1, planes == 2], -1).astype(np.float32)
    files = sorted(series.iterdir())
    file = write_seg(tmp_path / "a.dcm", files, planes, kind=kind, positions=positions_of(order))
    np.testing.assert_array_equal(volume_mask(file, series), numbers)
    assert distinct_values(str(file), VOLUMES) - {0} == {1, 2}


def test_read_mask__frames_in_the_order_of_the_file(tmp_path: Path, series: Path) -> None:
    """Reverse frames and their descriptions in the file itself, whatever order highdicom prefers."""
    numbers = random_numbers()
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes_of(numbers), kind="LABELMAP")
    dataset = pydicom.dcmread(file)
    order = [2, 4, 0, 3, 1]
    dataset.PixelData = dataset.pixel_array[order].tobytes() + bytes(len(dataset.PixelData) % 2)
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    dataset.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    dataset.save_as(file)
    np.testing.assert_array_equal(volume_mask(file, series), numbers)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_read_mask__flipped_axes(tmp_path: Path, series: Path, kind: str) -> None:
    """Columns to the right and rows to the front, from the opposite corner; then rows and columns exchanged."""
    numbers, files = random_numbers(), sorted(series.iterdir())
    corner = (6 * PIXEL[1], 5 * PIXEL[0], 0)
    planes = planes_of(numbers)
    flipped = write_seg(
        tmp_path / "a.dcm", files, planes[:, ::-1, ::-1], kind=kind, positions=positions_of(range(5), corner),
        cosines=(-1, 0, 0, 0, -1, 0),
    )  # fmt: skip
    np.testing.assert_array_equal(volume_mask(flipped, series), numbers)
    exchanged = write_seg(
        tmp_path / "b.dcm", files, planes.transpose(0, 2, 1), kind=kind, positions=positions_of(range(5)),
        cosines=(0, 1, 0, 1, 0, 0), pixel=PIXEL[::-1],
    )  # fmt: skip
    np.testing.assert_array_equal(volume_mask(exchanged, series), numbers)


def test_read_mask__coronal_frames_of_an_axial_series(tmp_path: Path, series: Path) -> None:
    numbers = random_numbers()
    planes = numbers[::-1, ::-1].transpose(1, 2, 0)[:, ::-1]  # front to back; rows to the feet, columns to the left
    places = [[START[0], START[1] + PIXEL[0] * k, START[2] + 2.5 * 4] for k in range(6)]
    file = write_seg(
        tmp_path / "a.dcm", sorted(series.iterdir()), planes, positions=places, cosines=(1, 0, 0, 0, 0, -1),
        pixel=(2.5, PIXEL[1]),
    )  # fmt: skip
    np.testing.assert_array_equal(volume_mask(file, series), numbers)


@pytest.mark.parametrize("kept", [(1, 4), (3,), ()])
def test_read_mask__slices_without_a_frame_are_background(tmp_path: Path, series: Path, kept: Sequence[int]) -> None:
    """Nor does the gap between frames, or that of a single one, change where they are."""
    numbers, files = random_numbers(), sorted(series.iterdir())
    numbers[:, :, [k for k in range(5) if k not in kept]] = 0
    file = write_seg(tmp_path / "a.dcm", files, planes_of(numbers))
    np.testing.assert_array_equal(volume_mask(file, series), numbers)
    if kept:
        some = write_seg(
            tmp_path / "b.dcm", [files[k] for k in kept], planes_of(numbers)[list(kept)], positions=positions_of(kept)
        )
        np.testing.assert_array_equal(volume_mask(some, series), numbers)


def test_read_mask__of_a_volume_that_is_not_dicom(tmp_path: Path, series: Path) -> None:
    nib = pytest.importorskip("nibabel")
    volume, numbers = read_volume(series), random_numbers()
    nib.save(nib.Nifti1Image(volume.values, volume.affine), tmp_path / "a.nii.gz")
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes_of(numbers))
    np.testing.assert_array_equal(volume_mask(file, tmp_path / "a.nii.gz"), numbers)


def test_read_mask__another_grid_or_frame_of_reference(tmp_path: Path, series: Path) -> None:
    files, planes = sorted(series.iterdir()), planes_of(random_numbers())
    grid = grid_of_volume(read_volume(series))
    for shift, words in (
        ((0.2, 0, 0), "another grid than its image: pixels are off by up to 0.29 voxels"),
        ((0, 0, 1.25), "off by up to 0.5 voxels"),
        ((0, 0, 2.5), "reaches beyond its image"),
        ((-7 * 0.7, 0, 0), "reaches beyond its image"),
    ):
        file = write_seg(tmp_path / "a.dcm", files, planes, positions=positions_of(range(5), shift))
        assert words in refusal(file, grid)
        assert "nearest neighbours" in refusal(file, grid)
    for pixel in ((0.8, 0.8), (0.4, 0.35)):
        file = write_seg(tmp_path / "a.dcm", files, planes, positions=positions_of(range(5)), pixel=pixel)
        assert "differ in spacing or direction" in refusal(file, grid)
    turned = (np.cos(0.2), np.sin(0.2), 0, -np.sin(0.2), np.cos(0.2), 0)
    file = write_seg(tmp_path / "a.dcm", files, planes, positions=positions_of(range(5)), cosines=turned)
    assert "lies on another grid" in refusal(file, grid)
    file = write_seg(tmp_path / "a.dcm", files, planes, FrameOfReferenceUID="1.2.3.99")
    assert "has another frame of reference than its image" in refusal(file, grid)
    near = write_seg(tmp_path / "a.dcm", files, planes, positions=positions_of(range(5), (0.03, 0, 0)))  # rounding
    np.testing.assert_array_equal(volume_mask(near, series), random_numbers())


def test_read_mask__overlapping_segments(tmp_path: Path, series: Path) -> None:
    planes = planes_of(random_numbers())
    stacked = np.stack([planes == 1, planes == 2], -1)
    stacked[2, 3, 1:4] = True
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), stacked.astype(np.uint8))
    message = refusal(file, grid_of_volume(read_volume(series)))
    assert "its segments 1 and 2 overlap, in 3 pixels of one frame, but a pixel has one class" in message


def test_read_mask__probabilities(tmp_path: Path, series: Path) -> None:
    planes = np.full((5, 6, 7, 1), 0.5, np.float32)
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes, kind="FRACTIONAL", segments=1)
    assert "probabilities between 0 and 1;\nthreshold them" in refusal(file, grid_of_volume(read_volume(series)))


def test_read_mask__values_are_segment_numbers(tmp_path: Path, series: Path) -> None:
    planes = planes_of(random_numbers() * 3)  # segments 3 and 6 of 6
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes, segments=6, kind="LABELMAP")
    found = volume_mask(file, series, Classes(("a", "b"), (6, 3)))
    np.testing.assert_array_equal(found, np.array([0, 2, 1])[random_numbers()])
    assert ", which is that of no class (class 1: 1, class 2: 2)" in refusal(file, grid_of_volume(read_volume(series)))


# ---- real series ----


@pytest.mark.parametrize("name", ["mr_series/HFS", "mr_series/HFDR", "ct_series"])
def test_read_mask__of_a_real_series_as_written(shared: Path, tmp_path: Path, name: str) -> None:
    folder = with_uids(shared / "data/volumes" / name, tmp_path / "series")
    volume = read_volume(folder)
    numbers = np.digitize(volume.values, np.quantile(volume.values[::4, ::4], [0.8, 0.95])).astype(np.uint8)
    numbers[:, :, 3] = numbers[4] = 0
    write_dicom_seg(tmp_path / "seg.dcm", numbers, folder, ORGANS)
    np.testing.assert_array_equal(volume_mask(tmp_path / "seg.dcm", folder), numbers)


@pytest.mark.parametrize("name", ["gdcm-CR-MONO1-10-chest.dcm", "siim_850819.dcm", "CT_small.dcm"])
def test_read_mask__of_a_real_image_as_written(shared: Path, tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(shared / "data/dicom" / name)
    for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, word, dataset.get(word) or generate_uid())
    dataset.save_as(tmp_path / "image.dcm")
    shape = int(dataset.Rows), int(dataset.Columns)
    numbers = random_numbers(shape)
    write_dicom_seg(tmp_path / "seg.dcm", numbers, tmp_path / "image.dcm", ORGANS)
    found = image_mask(tmp_path / "seg.dcm", tmp_path / "image.dcm", shape)
    np.testing.assert_array_equal(found, numbers)


# ---- images ----


def image_grid(image: Path, shape: tuple[int, int], frame: int = 1) -> ImageGrid:
    return grid_of_image(image, frame, shape, DEFAULT_LIMITS)


def image_mask(file: Path, image: Path, shape: tuple[int, int], frame: int = 1) -> NDArray[np.uint8]:
    mask = read_mask(str(file), ORGANS, data=IMAGES, grid=image_grid(image, shape, frame))
    assert mask.affine is None
    return mask.numbers


def radiograph(path: Path, instance: str, **tags: Any) -> Path:
    usual = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "StudyInstanceUID": "1.2",
             "SeriesInstanceUID": "1.2.3", "SOPInstanceUID": instance}  # fmt: skip
    return save_dicom(path, random_pixels(1, 8, 9)[0], **{**usual, **tags})


def test_read_mask__a_radiograph_by_reference(tmp_path: Path) -> None:
    images = [radiograph(tmp_path / f"{k}.dcm", f"1.2.3.{k}") for k in range(2)]
    numbers = random_numbers((8, 9))
    file = write_seg(tmp_path / "seg.dcm", images[:1], numbers[None])
    np.testing.assert_array_equal(image_mask(file, images[0], (8, 9)), numbers)
    of_png = read_mask(str(file), ORGANS, data=IMAGES, grid=ImageGrid((8, 9)))  # a PNG file of the same radiograph
    np.testing.assert_array_equal(of_png.numbers, numbers)
    assert "does not refer to this image (by its SOPInstanceUID)" in refusal(
        file, image_grid(images[1], (8, 9)), IMAGES
    )
    assert "has 9 x 8 pixels, but its image has 8 x 9;" in refusal(file, ImageGrid((9, 8)), IMAGES)


def test_read_mask__a_radiograph_to_which_no_frame_refers(tmp_path: Path) -> None:
    """Not all programs state the source of each frame; then the only image of the segmentation is it."""
    image = radiograph(tmp_path / "0.dcm", "1.2.3.0")
    file = write_seg(tmp_path / "seg.dcm", [image], random_numbers((8, 9))[None])
    dataset = pydicom.dcmread(file)
    for groups in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
        if "DerivationImageSequence" in groups:
            del groups.DerivationImageSequence
    dataset.save_as(file)
    np.testing.assert_array_equal(image_mask(file, image, (8, 9)), random_numbers((8, 9)))


def test_read_mask__slices_of_a_series_as_images(tmp_path: Path, series: Path) -> None:
    """Each gets its own frames, turned as it is; a slice without a frame is background."""
    numbers = random_numbers()
    numbers[:, :, 2], numbers[:, :, 4] = 0, np.minimum(numbers[:, :, 4], 1)
    planes, files = planes_of(numbers), sorted(series.iterdir())
    file = write_seg(tmp_path / "a.dcm", files, planes)
    corner = (6 * PIXEL[1], 5 * PIXEL[0], 0)
    flipped = write_seg(
        tmp_path / "b.dcm", files, planes[:, ::-1, ::-1], positions=positions_of(range(5), corner),
        cosines=(-1, 0, 0, 0, -1, 0),
    )  # fmt: skip
    for each in (file, flipped):
        for image, plane in zip(files, planes, strict=True):
            np.testing.assert_array_equal(image_mask(each, image, (6, 7)), plane)
        assert distinct_values(str(each), IMAGES, (str(files[4]), 1)) - {0} == {1}
        assert "is of several images" in refusal(each, ImageGrid((6, 7)), IMAGES)
    dataset = pydicom.dcmread(file)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.PlanePositionSequence[0].ImagePositionPatient[2] += 2.5
    dataset.save_as(tmp_path / "c.dcm")
    assert "lies on another grid than its image" in refusal(tmp_path / "c.dcm", image_grid(files[0], (6, 7)), IMAGES)


def test_read_mask__a_frame_of_an_enhanced_file(tmp_path: Path) -> None:
    positions = [(0, 0, 2.5 * k) for k in (2, 0, 3, 1)]
    image = save_enhanced(
        tmp_path / "image.dcm", random_pixels(4), positions, SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2",
        FrameOfReferenceUID="1.2.9",
    )  # fmt: skip
    planes = random_numbers((4, 6, 7))
    file = write_seg(tmp_path / "a.dcm", [image], planes)
    for frame, plane in enumerate(planes, 1):
        np.testing.assert_array_equal(image_mask(file, image, (6, 7), frame), plane)


# ---- what cannot be read ----


def test_read_mask__damaged_and_other_dicom_files(tmp_path: Path, series: Path) -> None:
    grid = grid_of_volume(read_volume(series))
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes_of(random_numbers()))
    content = file.read_bytes()
    for size in (len(content) - 40, len(content) // 2, 400):
        (tmp_path / "b.dcm").write_bytes(content[:size])
        refusal(tmp_path / "b.dcm", grid)
    dataset = pydicom.dcmread(file)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]
    dataset.save_as(tmp_path / "c.dcm")
    assert "frames are not all described" in refusal(tmp_path / "c.dcm", grid)
    image = radiograph(tmp_path / "image.dcm", "1.2.3.99")
    write_seg(tmp_path / "d.dcm", [image], random_numbers((8, 9))[None])
    assert "its header lacks a valid ImagePositionPatient" in refusal(tmp_path / "d.dcm", grid)
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.save_as(tmp_path / "e.dcm")
    for data in (VOLUMES, IMAGES):
        assert "an RT structure set, which has contours; convert it" in refusal(tmp_path / "e.dcm", grid, data)
    other = save_slice(tmp_path / "f.dcm", random_pixels(1)[0], (0, 0, 0))
    assert "the mask is a DICOM file; save it as" in refusal(other, grid, IMAGES)


def test_read_mask__limits_and_missing_library(tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of_volume(read_volume(series))
    file = write_seg(tmp_path / "a.dcm", sorted(series.iterdir()), planes_of(random_numbers()))
    for name, value in (("max_frames", 9), ("max_pixels", 41), ("max_bytes", 1000)):
        assert f"data.{name}" in refusal(file, grid, VOLUMES.model_copy(update={name: value}))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(SettingsError, match=r"need highdicom: pip install medmoco\[segmentation\]"):
        read_mask(str(file), ORGANS, data=VOLUMES, grid=grid)
