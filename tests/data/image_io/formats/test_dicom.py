"""DICOM files to grayscale arrays: exact values, every refusal, and the real files beside the checkout."""

import csv
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.data.image_io.intensity import DARK_TABLE, NO_WINDOW, NOT_BELIEVED, NOT_SQUARE, GrayImage
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.detection.sizes import image_size
from tests.helpers.both import read_both
from tests.helpers.dicom_files import RAMP12, refusal, save_dicom, table, window_oracle


@pytest.mark.parametrize("window", [(2048.0, 4096.0), (1000.0, 301.0), (40.5, 1.5)])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("where", ["file", "argument"])
def test_dicom__window_and_polarity(tmp_path: Path, window: tuple[float, float], polarity: str, where: str) -> None:
    tags = {"WindowCenter": [window[0], 1], "WindowWidth": [window[1], 2]} if where == "file" else {}
    shape = "INVERSE" if polarity == "MONOCHROME1" else "IDENTITY"
    path = save_dicom(tmp_path / "a", RAMP12, PhotometricInterpretation=polarity, PresentationLUTShape=shape, **tags)
    image = read_image(path, window="voi" if where == "file" else window)
    oracle = window_oracle(RAMP12, *window)
    assert (image.bits, image.notices) == (16, ())
    expected = 65535 - oracle if polarity == "MONOCHROME1" else oracle
    assert np.abs(image.pixels - expected).max() <= 1  # the two ways round a half differently


@pytest.mark.parametrize(
    ("function", "centre", "width"), [("LINEAR", 50, 700), ("LINEAR_EXACT", 50, 700), ("SIGMOID", 9, 300)]
)
def test_dicom__rescale_and_voi_function_as_pydicom(tmp_path: Path, function: str, centre: float, width: float) -> None:
    pixels = (RAMP12.astype(np.int32) - 2048).astype(np.int16)
    path = save_dicom(
        tmp_path / "a", pixels, RescaleSlope="0.5", RescaleIntercept="-10",
        WindowCenter=centre, WindowWidth=width, VOILUTFunction=function,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    theirs = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -2048 * 0.5 - 10, 2047 * 0.5 - 10
    expected = (theirs - low) / (high - low) * 65535
    assert np.abs(read_image(path).pixels - expected).max() <= 0.51


def test_dicom__negative_slope(tmp_path: Path) -> None:
    path = save_dicom(
        tmp_path / "a", RAMP12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096
    )
    np.testing.assert_array_equal(read_image(path).pixels, window_oracle(4095 - RAMP12.astype(int), 2048, 4096))


def test_dicom__full_range_is_of_the_stored_bits(tmp_path: Path) -> None:
    some = RAMP12[10:20]
    path = save_dicom(tmp_path / "a", some, RescaleSlope=2, RescaleIntercept=-7, WindowCenter=1, WindowWidth=2)
    expected = np.rint(some / 4095 * 65535)
    np.testing.assert_array_equal(read_image(path, window="full").pixels, expected)
    signed = (some.astype(int) - 2048).astype(np.int16)
    np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "b", signed), window="full").pixels, expected)


def test_dicom__without_window(tmp_path: Path) -> None:
    some = RAMP12[10:20].copy()
    image = read_image(save_dicom(tmp_path / "a", some))
    np.testing.assert_array_equal(image.pixels, np.rint((some - 640.0) / 639 * 65535))
    assert image.notices == (NO_WINDOW,)
    some[0, 1] = 0
    padded = read_image(save_dicom(tmp_path / "b", some, PixelPaddingValue=0))
    np.testing.assert_array_equal(padded.pixels[1:], image.pixels[1:])
    assert padded.pixels[0, 1] == 0
    shallow = read_image(save_dicom(tmp_path / "c", np.arange(100, 200, dtype=np.uint8).reshape(10, 10), stored=8))
    assert (shallow.bits, shallow.notices) == (8, ())
    assert shallow.pixels.ravel().tolist() == list(range(100, 200))


def test_dicom__window_that_cannot_be_used(tmp_path: Path) -> None:
    for tags in ({"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": 5}, {"WindowCenter": None, "WindowWidth": 9}):
        assert read_image(save_dicom(tmp_path / "a", RAMP12, **tags)).notices == (NO_WINDOW,)


@pytest.mark.parametrize("signed", [False, True])
def test_dicom__bits_above_those_stored_are_ignored(tmp_path: Path, signed: bool) -> None:
    clean = RAMP12 if not signed else (RAMP12.astype(np.int32) - 2048).astype(np.int16)
    garbage = np.random.default_rng(0).integers(0, 16, RAMP12.shape).astype(np.uint16) << 12
    dirty = ((clean.view(np.uint16) & 0x0FFF) | garbage).view(clean.dtype)
    for window in ("full", (100.0, 300.0)):
        expected = read_image(save_dicom(tmp_path / "a", clean), window=window).pixels
        assert len(np.unique(expected)) > 100
        np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "b", dirty), window=window).pixels, expected)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("words", [False, True])
def test_dicom__modality_table(tmp_path: Path, syntax: str, words: bool) -> None:
    pixels = np.array([[-5, -2, -1, 0, 1, 9]], np.int16)
    entries = [1000, 2000, 4000, 3000]
    data = np.array(entries, ">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes() if words else entries
    path = save_dicom(tmp_path / "a", pixels, syntax=syntax, ModalityLUTSequence=table(4, -2, 16, data))
    values = np.array([[1000, 1000, 2000, 4000, 3000, 3000]])
    np.testing.assert_array_equal(read_image(path, window=(2500, 4001)).pixels, window_oracle(values, 2500, 4001))


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (16, 65535)])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom__voi_table_depth(tmp_path: Path, bits: int, white: int, polarity: str) -> None:
    entries = (np.linspace(0, 1, 1000) ** 2 * white).round().astype(int)
    path = save_dicom(
        tmp_path / "a", RAMP12, VOILUTSequence=table(1000, 2000, bits, entries.tolist()),
        PhotometricInterpretation=polarity, WindowCenter=1, WindowWidth=2,
    )  # fmt: skip
    share = entries[np.clip(RAMP12.astype(int) - 2000, 0, 999)] / white
    expected = np.rint((1 - share if polarity == "MONOCHROME1" else share) * 65535)
    assert np.abs(read_image(path).pixels - expected).max() <= 1


def test_dicom__voi_table_of_packed_bytes_and_too_short(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = save_dicom(tmp_path / "a", pixels, 8, VOILUTSequence=table(256, 0, 8, bytes(range(255, -1, -1))))
    np.testing.assert_array_equal(read_image(path).pixels, 255 - pixels)
    path = save_dicom(tmp_path / "b", pixels, 8, VOILUTSequence=table(256, 0, 16, bytes(100)))
    assert "50 of 256 entries" in refusal(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian])
def test_dicom__frames(tmp_path: Path, syntax: str) -> None:
    frames = np.stack([RAMP12, RAMP12[::-1], RAMP12 // 2])
    path = save_dicom(tmp_path / "a", frames, NumberOfFrames=3, WindowCenter=2048, WindowWidth=4096)
    dataset = pydicom.dcmread(path)
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    for number, frame in enumerate(frames, start=1):
        np.testing.assert_array_equal(read_image(path, frame=number).pixels, window_oracle(frame, 2048, 4096))
    assert "frame 4 is requested, but the file has 3" in refusal(path, frame=4)


def test_dicom__functional_groups(tmp_path: Path) -> None:
    def group(**macros: dict[str, float]) -> Dataset:
        item = Dataset()
        for name, values in macros.items():
            macro = Dataset()
            macro.update(values)
            setattr(item, name, [macro])
        return item

    shared = group(FrameVOILUTSequence={"WindowCenter": 4096, "WindowWidth": 8192})
    rescale = "PixelValueTransformationSequence"
    per_frame = [group(**{rescale: {"RescaleSlope": slope, "RescaleIntercept": 0}}) for slope in (1, 2)]
    path = save_dicom(
        tmp_path / "a", np.stack([RAMP12, RAMP12]), NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=per_frame,
    )  # fmt: skip
    for frame in (1, 2):
        expected = window_oracle(RAMP12.astype(int) * frame, 4096, 8192)
        np.testing.assert_array_equal(read_image(path, frame=frame).pixels, expected)


def test_dicom__colour(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    path = save_dicom(tmp_path / "a", colours, 8, PhotometricInterpretation="RGB", **tags)
    image = read_image(path)
    assert image.notices == ("stored in colour; converted to luma (ITU-R BT.601)",)
    assert np.abs(image.pixels - colours @ [0.299, 0.587, 0.114]).max() <= 0.51
    path = save_dicom(tmp_path / "b", colours, 8, PhotometricInterpretation="HSV", **tags)
    assert "photometric" in refusal(path)


def test_dicom__not_an_image(tmp_path: Path) -> None:
    segmentation = save_dicom(tmp_path / "a", RAMP12, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert "segmentation" in refusal(segmentation)
    for missing in (["PixelData"], ["PixelData", "Rows", "Columns"]):
        dataset = pydicom.dcmread(save_dicom(tmp_path / "b", RAMP12))
        for name in missing:
            del dataset[name]
        dataset.save_as(tmp_path / "b")
        assert "no " in refusal(tmp_path / "b")
    assert "bits stored" in refusal(save_dicom(tmp_path / "c", RAMP12.astype(np.uint32), 32))


def test_dicom__size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a", RAMP12, Rows=60_000, Columns=60_000)
    assert "60000 x 60000 pixels exceed" in refusal(path)
    assert "ends inside its pixel data" in refusal(path, limits=Limits(max_pixels=10**10))
    path = save_dicom(tmp_path / "b", RAMP12, NumberOfFrames=10_000)
    assert "ends inside its pixel data" in refusal(path)
    assert "10000 frames exceed data.max_frames = 9999" in refusal(path, limits=Limits(max_frames=9999))


def test_dicom__inflation_is_bounded(tmp_path: Path) -> None:
    bomb = np.zeros((4_000, 10_000), np.uint8)
    path = save_dicom(tmp_path / "a", bomb, 8, DeflatedExplicitVRLittleEndian, Rows=10, Columns=10)
    assert path.stat().st_size < 100_000
    assert "inflates to more than" in refusal(path, limits=Limits(max_pixels=100))
    data = bytearray(path.read_bytes())
    data[140] += 8  # the length of the meta information, from which one might start to inflate
    path.write_bytes(data)
    assert "inflates to more than" in refusal(path, limits=Limits(max_pixels=100))


def compressed(path: Path, syntax: str) -> bytes:
    dataset = pydicom.dcmread(save_dicom(path, np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)))
    if syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def test_dicom__cut_off_anywhere(tmp_path: Path, syntax: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a"
    data = compressed(path, syntax)
    whole = read_image(path).pixels
    delimiter = 8 if syntax in (RLELossless, JPEG2000Lossless) else 0  # nothing of the image is lost without it
    for cut in [*range(1, 30), *range(30, len(data) - 1, len(data) // 40)]:
        path.write_bytes(data[:-cut])
        if cut <= delimiter:
            np.testing.assert_array_equal(read_image(path).pixels, whole)
        else:
            refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_dicom__frame_cut_inside_a_whole_container(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "a"
    compressed(path, syntax)
    dataset = pydicom.dcmread(path)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    for kept in (0.2, 0.5, 0.9, 0.99):
        dataset.PixelData = encapsulate([frame[: int(len(frame) * kept) // 2 * 2]])
        dataset.save_as(path)
        refusal(path)


def test_dicom__warnings_stay_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = save_dicom(tmp_path / "a", RAMP12)
    data = path.read_bytes().replace(b"secret-4711 ", b"secret\\4711 ").replace(b"1.2.3.4\0", b"1.2.x.4\0")
    path.write_bytes(data + b"\0" * 64)  # trailing bytes make pydicom warn
    with caplog.at_level(logging.DEBUG):
        read_image(path)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# Real files


def listed(shared: Path) -> list[dict[str, str]]:
    with (shared / "data/dicom/index.csv").open() as stream:
        return list(csv.DictReader(stream))


REFUSED = {
    "RG2_JPLY.dcm": "JPEG Extended",
    "JPGExtended.dcm": "JPEG Extended",
    "chrKoreanMulti.dcm": "no pixel data",
    "MR_truncated.dcm": "ends inside",
    "rtdose.dcm": "dose",
    "liver_1frame.dcm": "segmentation",
}


def test_dicom__real_files(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for record in listed(shared):
        path = shared / "data/dicom" / record["file"]
        if record["file"] in REFUSED:
            assert REFUSED[record["file"]] in refusal(path)
            continue
        image = read_image(path)
        assert image.pixels.shape == (int(record["rows"]), int(record["cols"])), record["file"]
        assert image.pixels.min() < image.pixels.max()
        deep = int(record["bits_stored"]) > 8 or record["photometric"] == "PALETTE COLOR"
        assert image.bits == (16 if deep else 8)
        colour = record["photometric"] not in ("MONOCHROME1", "MONOCHROME2")
        assert any("luma" in notice for notice in image.notices) == colour
    assert capfd.readouterr() == ("", "")


def test_dicom__real_files_agree(shared: Path) -> None:
    def pixels(name: str) -> NDArray[np.int64]:
        return read_image(shared / f"data/dicom/{name}.dcm").pixels.astype(np.int64)

    raw = pixels("RG1_UNCR")
    np.testing.assert_array_equal(pixels("RG1_J2KR"), raw)
    assert np.abs(pixels("RG1_JLSN") - raw).max() <= 3 * 65535 / 30000 + 4  # near-lossless: two or three stored levels
    np.testing.assert_array_equal(pixels("siim_850819") + pixels("Fake_MONOHR1"), 255)
    np.testing.assert_array_equal(pixels("RG2_JPLL"), pixels("RG2_RLE"))
    np.testing.assert_array_equal(pixels("RG2_JLSL"), pixels("RG2_RLE"))
    for encoding in ("RLE", "bigendian", "implicit"):
        np.testing.assert_array_equal(pixels(f"MR_small_{encoding}"), pixels("MR_small"))


# Files that contradict themselves; what is drawn at random is in test_dicom_levels.py


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_dicom__no_delimiter_before_another_element(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "a"
    data = compressed(path, syntax)
    whole = read_image(path).pixels
    padding = struct.pack("<HH2s2xL", 0xFFFC, 0xFFFC, b"OB", 64) + bytes(64)
    path.write_bytes(data[:-8] + padding)
    found = read_both(path)
    assert isinstance(found, GrayImage)
    np.testing.assert_array_equal(found.pixels, whole)


def test_dicom__private_and_video_syntaxes_are_named(tmp_path: Path) -> None:
    for syntax, name in (
        ("1.2.840.113619.5.2", "1.2.840.113619.5.2, a private transfer syntax"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
    ):
        dataset = pydicom.dcmread(save_dicom(tmp_path / "a", RAMP12))
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([bytes(64)])
        dataset.save_as(tmp_path / "a", implicit_vr=False, little_endian=True)
        message = refusal(tmp_path / "a")
        assert name in message
        assert "damaged" not in message


def test_dicom__floating_point_pixels_are_not_called_damaged(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a", RAMP12))
    dataset.FloatPixelData = RAMP12.astype("<f4").tobytes()
    dataset.BitsAllocated = 32
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.save_as(tmp_path / "a")
    message = refusal(tmp_path / "a")
    assert "lacks BitsStored, PixelRepresentation" in message
    assert "floating-point" in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    ("tags", "aspect"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, 2),
        ({"ImagerPixelSpacing": [0.1, 0.3]}, 1 / 3),
        ({"PixelAspectRatio": [1, 2]}, 1 / 2),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [1, 2]}, 1),  # the spacing counts
        ({"PixelSpacing": [0.1, 0.1004]}, 1),
        ({"PixelSpacing": [0, 0.1], "ImagerPixelSpacing": [0.2, 0.1]}, 2),
        ({"PixelSpacing": [100, 0.1]}, 1),
    ],
)
def test_dicom__pixels_that_are_not_square(tmp_path: Path, tags: dict[str, Any], aspect: float) -> None:
    """A disc is round on the canvas, whatever the shape of the pixels it is stored in."""
    down, across = np.indices((60, round(60 * aspect)))
    height, width = down.shape
    disc = ((down - height / 2 + 0.5) / height) ** 2 + ((across - width / 2 + 0.5) / width) ** 2 < 0.2
    path = save_dicom(tmp_path / "a", (disc * 4095).astype(np.uint16), WindowCenter=2048, WindowWidth=4096, **tags)
    image = read_image(path)
    canvas = to_canvas(image, 48, 8)
    assert (canvas.height, canvas.width) == (48, 48)
    lit = canvas.pixels > 127
    assert abs(lit.any(axis=0).sum() - lit.any(axis=1).sum()) <= 2
    assert (NOT_SQUARE in image.notices) == (aspect != 1)
    assert (NOT_BELIEVED in image.notices) == (tags.get("PixelSpacing") == [100, 0.1])
    size = image_size(path, 1, DEFAULT_LIMITS)
    assert size == pytest.approx((height, width, aspect))


def test_dicom__dark_table_is_remarked_on(tmp_path: Path) -> None:
    for white, notices in ((4095, (DARK_TABLE,)), (65535, ())):
        entries = np.linspace(0, white, 4096).astype(int).tolist()
        path = save_dicom(tmp_path / "a", RAMP12, VOILUTSequence=table(4096, 0, 16, entries))
        assert read_image(path).notices == notices
