"""Files to grayscale arrays: exact values, every refusal, and the real DICOM files beside the checkout."""

import csv
import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
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

from medmoco.data.images import GrayImage, read_image, to_canvas
from medmoco.errors import ImageError

RAMP12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
NO_WINDOW = "no VOI window in the file: spread from its smallest to its largest value"


def save_dicom(
    path: Path, pixels: NDArray[Any], stored: int = 12, syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> Path:
    """Write pixels (H, W), (F, H, W) or with `SamplesPerPixel=3` (H, W, 3)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID = "secret-4711"
    height, width = pixels.shape[:2] if tags.get("SamplesPerPixel") == 3 else pixels.shape[-2:]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, stored, stored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(entries: int, first: int, bits: int, data: list[int] | bytes) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [entries % 2**16, first, bits]
    item.LUTData = data
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item["LUTData"].VR = "OW" if isinstance(data, bytes) else "US"
    return [item]


def window_oracle(values: NDArray[Any], centre: float, width: float) -> NDArray[np.int64]:
    """DICOM PS3.3 C.11.2.1.2.1, one value at a time, to white 65535."""
    out = []
    for x in values.astype(float).ravel():
        if x <= centre - 0.5 - (width - 1) / 2:
            out.append(0)
        elif x > centre - 0.5 + (width - 1) / 2:
            out.append(65535)
        else:
            out.append(round(((x - (centre - 0.5)) / (width - 1) + 0.5) * 65535))
    return np.array(out).reshape(values.shape)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert str(path) not in message
    assert "4711" not in message
    assert len(message.splitlines()) <= 4
    return message


# PNG, JPEG, TIFF


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "dcm"])
def test_read_image__16_bit_exact_whatever_the_suffix(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}", kind)
        image = read_image(tmp_path / f"ramp.{suffix}")
        assert image.pixels.dtype == np.uint16
        assert image.bits == 16
        assert image.notices == ()
        np.testing.assert_array_equal(image.pixels, ramp)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image__8_bit_exact(tmp_path: Path, kind: str) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(ramp).save(tmp_path / "ramp", kind)
    image = read_image(tmp_path / "ramp")
    assert (image.bits, image.notices) == (8, ())
    np.testing.assert_array_equal(image.pixels, ramp)


def test_read_image__jpeg_is_not_reduced_twice(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 8)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.pixels.shape == ramp.shape
    assert np.abs(image.pixels.astype(int) - ramp).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image__colour_is_luma(tmp_path: Path, kind: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a", kind)
    image = read_image(tmp_path / "a")
    assert image.notices == ("stored in colour; reduced to luma (ITU-R BT.601)",)
    assert np.abs(image.pixels - colours @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_read_image__16_bit_colour(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), colours[..., ::-1])
    assert np.abs(read_image(tmp_path / "a.png").pixels - colours @ [0.299, 0.587, 0.114]).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image__palette_colours_not_indices(tmp_path: Path, kind: str) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0, 100, 100, 100])
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "a", kind)
    assert read_image(tmp_path / "a").pixels.tolist() == [[255, 0], [100, 0]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image__black_and_white(tmp_path: Path, kind: str) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a", kind)
    assert read_image(tmp_path / "a").pixels.tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_read_image__alpha(tmp_path: Path, kind: str, mode: str) -> None:
    image = Image.fromarray(np.array([[10, 200]], np.uint8)).convert(mode)
    image.save(tmp_path / "opaque", kind)
    assert read_image(tmp_path / "opaque").pixels.tolist() == [[10, 200]]
    image.putalpha(Image.fromarray(np.array([[255, 254]], np.uint8)))
    image.save(tmp_path / "clear", kind)
    assert "transparent" in refusal(tmp_path / "clear")


def test_read_image__tiff_white_is_zero_and_pages(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        levels = np.array([[0, 100, 7]], dtype)
        # Pillow turns 8-bit pixels round when it writes this tag, and 16-bit ones not.
        Image.fromarray(levels).save(tmp_path / "a.tif", tiffinfo={262: 0})
        expected = levels if dtype == np.uint8 else 65535 - levels
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, expected)
    pages = [Image.fromarray(np.array([[page, 9]], np.uint8)) for page in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path / "pages.tif", frame=3).pixels[0, 0] == 2
    assert "has 3" in refusal(tmp_path / "pages.tif", frame=4)


def test_read_image__unsupported_modes(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    assert "not supported" in refusal(tmp_path / "float.tif")
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    assert "CMYK" in refusal(tmp_path / "cmyk.jpg")


def test_read_image__exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(levels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.rot90(levels, -1))


def test_read_image__explicit_window_of_a_16_bit_png(tmp_path: Path) -> None:
    Image.fromarray(RAMP12).save(tmp_path / "a.png")
    assert "12 bits or fewer" in read_image(tmp_path / "a.png").notices[0]
    image = read_image(tmp_path / "a.png", window=(2048, 4096))
    assert image.notices == ()
    np.testing.assert_array_equal(image.pixels, window_oracle(RAMP12, 2048, 4096))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("PNG", np.uint8), ("PNG", np.uint16), ("JPEG", np.uint8), ("JPEG-progressive", np.uint8),
        ("TIFF", np.uint8), ("TIFF", np.uint16), ("TIFF-lzw", np.uint8), ("TIFF-lzw", np.uint16),
    ],
)  # fmt: skip
def test_read_image__cut_off_anywhere(
    tmp_path: Path, kind: str, dtype: type[np.unsignedinteger[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (60, 70), dtype=dtype)
    buffer = io.BytesIO()
    options = {"TIFF-lzw": {"compression": "tiff_lzw"}, "JPEG-progressive": {"progressive": True}}
    Image.fromarray(noise).save(buffer, kind.split("-")[0], **options.get(kind, {}))
    data = buffer.getvalue()
    path = tmp_path / "cut"
    path.write_bytes(data)
    whole = read_image(path).pixels
    for cut in [*range(1, 40), *range(40, len(data), len(data) // 40)]:
        path.write_bytes(data[:-cut])
        try:
            got = read_image(path).pixels
        except ImageError:
            continue
        else:  # a TIFF file may end in bytes that no pixel needs
            assert kind.startswith("TIFF")
            np.testing.assert_array_equal(got, whole)
    assert str(path) not in "".join(capfd.readouterr())  # libtiff itself writes to stderr


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT" + bytes(100)


def test_read_image__size_is_checked_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(20_000, 6_000))
    assert "20000 x 6000 pixels are more than data.max_pixels = 100000000" in refusal(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_header(60_000, 60_000))
    assert "pixels" in refusal(tmp_path / "a.png")
    for kind in ("PNG", "JPEG", "TIFF"):
        Image.new("L", (11, 10)).save(tmp_path / "a", kind)
        assert "11 x 10" in refusal(tmp_path / "a", max_pixels=109)
        read_image(tmp_path / "a", max_pixels=110)


def test_read_image__no_image(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.png")
    assert "cannot be opened" in refusal(tmp_path)
    for name, content in {"empty": b"", "text": b"hello" * 99, "gif": b"GIF89a" + b"\0" * 200}.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name)
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    assert "frame 2" in refusal(tmp_path / "one.png", frame=2)
    assert "frame 0" in refusal(tmp_path / "one.png", frame=0)


def test_read_image__constant(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.pixels == 7).all()
    assert image.notices == ("constant: all pixels have the same value",)


# DICOM


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
    assert "frame 4 is asked for, but the file has 3" in refusal(path, frame=4)


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
    assert image.notices == ("stored in colour; reduced to luma (ITU-R BT.601)",)
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
    assert "60000 x 60000 pixels are more than" in refusal(path)
    assert "ends inside its pixel data" in refusal(path, max_pixels=10**10)
    path = save_dicom(tmp_path / "b", RAMP12, NumberOfFrames=1_000_000)
    assert "ends inside its pixel data" in refusal(path)


def test_dicom__inflation_is_bounded(tmp_path: Path) -> None:
    bomb = np.zeros((4_000, 10_000), np.uint8)
    path = save_dicom(tmp_path / "a", bomb, 8, DeflatedExplicitVRLittleEndian, Rows=10, Columns=10)
    assert path.stat().st_size < 100_000
    assert "inflates to more than" in refusal(path, max_pixels=100)


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
    read_image(path)
    for cut in [*range(1, 30), *range(30, len(data) - 1, len(data) // 40)]:
        path.write_bytes(data[:-cut])
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


# Canvas


def gray(pixels: NDArray[Any]) -> GrayImage:
    return GrayImage(pixels, 8 * pixels.dtype.itemsize, ())


def test_to_canvas__depths() -> None:
    deep = gray(np.array([[0, 128, 129, 257 * 100, 65406, 65407, 65535, 1]], np.uint16))
    assert to_canvas(deep, 8, 8).pixels[0].tolist() == [0, 0, 1, 100, 254, 255, 255, 0]
    assert to_canvas(deep, 8, 16).pixels[0].tolist() == deep.pixels[0].tolist()
    ramp = np.arange(256, dtype=np.uint8)[None]
    canvas = to_canvas(gray(ramp), 256, 16).pixels
    assert canvas.dtype == np.uint16
    assert canvas[0].tolist() == [level * 257 for level in range(256)]
    twelve = GrayImage(np.array([[0, 4095, 2048]], np.uint16), 12, ())
    assert to_canvas(twelve, 3, 8).pixels[0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("shape", "size", "valid"),
    [((300, 200), 150, (150, 100)), ((200, 300), 300, (200, 300)), ((10, 40), 80, (20, 80)), ((1, 5000), 64, (1, 64)),
     ((1955, 1841), 256, (256, 241)), ((523, 512), 256, (256, 251))],
)  # fmt: skip
def test_to_canvas__shape_and_padding(shape: tuple[int, int], size: int, valid: tuple[int, int]) -> None:
    canvas = to_canvas(gray(np.full(shape, 200, np.uint8)), size, 8)
    assert canvas.pixels.shape == (size, size)
    assert (canvas.height, canvas.width) == valid
    assert (canvas.pixels[: valid[0], : valid[1]] == 200).all()
    assert canvas.pixels.sum() == 200 * valid[0] * valid[1]


@pytest.mark.parametrize("factor", [2, 4, 3, 7])
def test_to_canvas__area_filter(factor: int) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (20 * factor, 24 * factor)).astype(np.float32)
    # Halving first is exact for powers of two; else the rest is weighed by broken pixels, exact for smooth images.
    pixels = (noise if factor in (2, 4) else cv2.GaussianBlur(noise, None, 2 * factor)).astype(np.uint16)
    means = pixels.reshape(20, factor, 24, factor).mean((1, 3))
    canvas = to_canvas(gray(pixels), 24, 16)
    assert np.abs(canvas.pixels[:20, :24] - means).max() <= (2 if factor in (2, 4) else 300)


def test_to_canvas__detail_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (700, 350))
    canvas = to_canvas(gray(stripes), 100, 8)
    assert np.abs(canvas.pixels.astype(int) - 128).max() <= 20


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
