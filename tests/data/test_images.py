"""PNG, JPEG and TIFF files to grayscale arrays and canvases: exact values and every refusal."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medmoco.data.images import FileFormat, GrayImage, file_format, read_image, to_canvas
from medmoco.errors import ImageError
from tests.data.dicom_files import RAMP12, refusal, save_dicom, window_oracle

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


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        ("png", "L", ("PNG", 8, "MONOCHROME2")),
        ("png", "I;16", ("PNG", 16, "MONOCHROME2")),
        ("png", "RGB", ("PNG", 8, "RGB")),
        ("png", "P", ("PNG", 8, "PALETTE COLOR")),
        ("png", "1", ("PNG", 1, "MONOCHROME2")),
        ("jpg", "L", ("JPEG", 8, "MONOCHROME2")),
        ("jpg", "RGB", ("JPEG", 8, "RGB")),
        ("tif", "L", ("TIFF", 8, "MONOCHROME2")),
        ("tif", "I;16", ("TIFF", 16, "MONOCHROME2")),
        ("tif", "RGB", ("TIFF", 8, "RGB")),
    ],
)
def test_file_format__of_plain_images(tmp_path: Path, kind: str, mode: str, expected: FileFormat) -> None:
    values = np.arange(64, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(8, 8)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values).convert(mode)
    image.save(tmp_path / f"image.{kind}")
    assert file_format(tmp_path / f"image.{kind}") == expected


def test_file_format__of_white_is_zero_and_of_dicom(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "inverse.tif", tiffinfo={262: 0})
    assert file_format(tmp_path / "inverse.tif") == ("TIFF", 8, "MONOCHROME1")
    save_dicom(tmp_path / "film.tif", RAMP12, PhotometricInterpretation="MONOCHROME1", PatientName="A^B")
    assert file_format(tmp_path / "film.tif") == ("DICOM", 12, "MONOCHROME1")
