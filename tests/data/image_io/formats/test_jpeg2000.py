"""DICOM files decoded at a reduced size have the canvases of a full decode, or are decoded in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless

from medmoco.data.image_io.formats.jpeg2000 import decode_reduced
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.errors import ImageError
from tests.helpers.dicom_files import save_dicom

CANVAS = 64
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def film(height: int, width: int, bits: int = 12, *, signed: bool = False) -> NDArray[Any]:
    """A smooth picture with a little noise, as films have it, over most of the range."""
    rng = np.random.default_rng(height)
    smooth = cv2.resize(rng.random((7, 7)), (width, height), interpolation=cv2.INTER_CUBIC)
    shares = np.clip(0.1 + 0.8 * smooth + rng.normal(0, 0.01, smooth.shape), 0, 1)
    values = np.rint(shares * (2**bits - 1)) - (2 ** (bits - 1) if signed else 0)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")


def wavelets(path: Path, pixels: NDArray[Any], bits: int = 12, **tags: Any) -> Path:
    """Write a JPEG 2000 file, really encoded by OpenJPEG."""
    dataset = pydicom.dcmread(save_dicom(path, pixels, bits, **tags))
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    dataset.save_as(path)
    return path


def codestream(path: Path) -> bytes:
    return get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)


def errors(path: Path, **options: Any) -> NDArray[np.int64]:
    """Return the differences in grey levels of 255 between the canvases of a reduced and of a full decode."""
    reduced, full = (read_image(path, at_least=least, **options) for least in (CANVAS, None))
    assert reduced.pixels.size < full.pixels.size
    assert (reduced.notices, reduced.bits) == (full.notices, full.bits)
    assert min(max(reduced.pixels.shape), 4 * CANVAS) >= 2 * CANVAS
    found, expected = to_canvas(reduced, CANVAS, 8), to_canvas(full, CANVAS, 8)
    assert (found.height, found.width) == (expected.height, expected.width)
    return np.abs(found.pixels.astype(np.int64) - expected.pixels)


@pytest.mark.parametrize("size", [(512, 512), (509, 331), (1021, 1023), (257, 640)])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False), (15, True)])
def test_decode_reduced__gives_averages_of_blocks(
    tmp_path: Path, size: tuple[int, int], bits: int, signed: bool
) -> None:
    pixels = film(*size, bits, signed=signed)
    found = decode_reduced(codestream(wavelets(tmp_path / "a.dcm", pixels, bits)), bits, signed=signed, at_least=128)
    assert found is not None
    halvings = int(np.log2(max(size) / 128))
    assert found.shape == tuple(side // 2**halvings for side in size)
    height, width = (side >> halvings << halvings for side in size)
    blocks = pixels[:height, :width].astype(np.float64)
    blocks = cv2.resize(blocks, (width >> halvings, height >> halvings), interpolation=cv2.INTER_AREA)
    inner = (found - blocks)[1:-1, 1:-1]
    assert np.abs(inner).mean() < 0.01 * 2**bits
    assert abs(inner.mean()) < 1.1  # level: lossless wavelets round at each halving


def test_decode_reduced__refuses_what_is_not_as_stated(tmp_path: Path) -> None:
    data = codestream(wavelets(tmp_path / "a.dcm", film(256, 256)))
    assert decode_reduced(data, 12, signed=False, at_least=128) is not None
    assert decode_reduced(data, 12, signed=False, at_least=129) is None
    assert decode_reduced(data, 13, signed=False, at_least=64) is None
    assert decode_reduced(data, 12, signed=True, at_least=64) is None
    assert decode_reduced(data[:60], 12, signed=False, at_least=64) is None
    assert decode_reduced(b"\0\0\0\x0cjP  \r\n\x87\n" + data, 12, signed=False, at_least=64) is None


@pytest.mark.parametrize("write", [save_dicom, wavelets])
@pytest.mark.parametrize("size", [(512, 512), (509, 331), (1021, 1023)])
@pytest.mark.parametrize(
    "tags",
    [
        WINDOW,
        {**WINDOW, "PhotometricInterpretation": "MONOCHROME1"},
        {**WINDOW, "VOILUTFunction": "SIGMOID"},
        {**WINDOW, "PixelSpacing": [0.2, 0.1]},
        {"WindowCenter": 900, "WindowWidth": 1500},
    ],
)
def test_read_image__reduced_is_close_to_full(
    tmp_path: Path, write: Any, size: tuple[int, int], tags: dict[str, Any]
) -> None:
    found = errors(write(tmp_path / "a.dcm", film(*size), **tags))
    assert found.mean() < 0.5
    assert np.percentile(found, 99.9) <= 3


def test_read_image__signed_values_are_reduced(tmp_path: Path) -> None:
    window = {"WindowCenter": 0, "WindowWidth": 4000}
    for write in (save_dicom, wavelets):
        assert errors(write(tmp_path / "a.dcm", film(512, 300, signed=True), **window)).mean() < 0.5


def test_read_image__the_range_of_an_image_without_window_is_that_of_its_full_size(tmp_path: Path) -> None:
    pixels = film(512, 512)
    pixels[100, 100], pixels[300, 200] = 0, 4095  # single pixels, which no reduced size has
    plain, coded = save_dicom(tmp_path / "a.dcm", pixels), wavelets(tmp_path / "b.dcm", pixels)
    np.testing.assert_array_equal(read_image(coded, at_least=CANVAS).pixels, read_image(plain, at_least=CANVAS).pixels)
    assert errors(plain).mean() < 0.5


@pytest.mark.parametrize("write", [save_dicom, wavelets])
@pytest.mark.parametrize(
    "tags",
    [
        {**WINDOW, "PixelPaddingValue": 0},
        {"WindowCenter": 1000, "WindowWidth": 40},  # both sides of an edge would be black or white
        {"BitsStored": 4, "HighBit": 3, "WindowCenter": 8, "WindowWidth": 16},
    ],
)
def test_read_image__what_cannot_be_averaged_is_decoded_in_full(
    tmp_path: Path, write: Any, tags: dict[str, Any]
) -> None:
    pixels = film(512, 512, 4 if "BitsStored" in tags else 12)
    path = write(tmp_path / "a.dcm", pixels, 4 if "BitsStored" in tags else 12, **tags)
    reduced, full = (read_image(path, at_least=least) for least in (CANVAS, None))
    np.testing.assert_array_equal(reduced.pixels, full.pixels)


def test_read_image__real_files_are_close_to_full(shared: Path) -> None:
    reduced = 0
    for path in sorted((shared / "data/dicom").glob("*.dcm")):
        try:
            full = read_image(path)
        except ImageError:
            continue
        small = read_image(path, at_least=CANVAS)
        assert small.notices == full.notices, path.name
        if small.pixels.shape != full.pixels.shape:
            found = errors(path)
            assert found.mean() < 1, path.name
            assert np.percentile(found, 99.9) <= 6, path.name
            reduced += 1
    assert reduced >= 14


@pytest.mark.parametrize("syntax", [HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL])
def test_read_image__high_throughput_files_are_decoded_in_full_or_reduced(tmp_path: Path, syntax: str) -> None:
    pixels = film(256, 144, 8)
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", pixels, 8, WindowCenter=128, WindowWidth=256))
    # Written by OpenJPH 0.26.3 through imagecodecs 2026.3.6: `htj2k_encode(film(256, 144, 8), reversible=True)`.
    dataset.PixelData = encapsulate([Path(__file__).with_name("openjph.j2c").read_bytes()])
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "b.dcm")
    found, expected = (read_image(tmp_path / name).pixels.astype(np.int64) for name in ("b.dcm", "a.dcm"))
    assert np.abs(found - expected).max() <= 1  # lossless, but OpenCV may round `film` differently on another CPU
    assert errors(tmp_path / "b.dcm").mean() < 0.5


def test_read_image__a_palette_is_decoded_in_full(tmp_path: Path) -> None:
    colours = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.arange(256, dtype="<u2").tobytes()))
    }
    path = wavelets(tmp_path / "a.dcm", film(512, 512, 8), 8, PhotometricInterpretation="PALETTE COLOR", **colours)
    reduced, full = (read_image(path, at_least=least) for least in (CANVAS, None))
    assert reduced.notices == full.notices
    np.testing.assert_array_equal(reduced.pixels, full.pixels)
