"""PNG, JPEG and TIFF files to grayscale arrays and canvases: exact values and every refusal."""

import io
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medmoco.config import DataSettings
from medmoco.data.image_io.images import FileFormat, file_format, read_canvas, read_image, size_in_header, to_canvas
from medmoco.data.image_io.intensity import GrayImage
from medmoco.data.image_io.limits import Limits
from medmoco.errors import ImageError
from tests.helpers.dicom_files import RAMP12, refusal, save_dicom, window_oracle

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
    assert image.notices == ("stored in colour; converted to luma (ITU-R BT.601)",)
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


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT" + bytes(100)


def test_read_image__size_is_checked_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(20_000, 6_000))
    assert "20000 x 6000 pixels exceed data.max_pixels = 100000000" in refusal(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_header(60_000, 60_000))
    assert "pixels" in refusal(tmp_path / "a.png")
    for kind in ("PNG", "JPEG", "TIFF"):
        Image.new("L", (11, 10)).save(tmp_path / "a", kind)
        assert "11 x 10" in refusal(tmp_path / "a", limits=Limits(max_pixels=109))
        read_image(tmp_path / "a", limits=Limits(max_pixels=110))


def test_read_image__no_image(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.png")
    assert "is a folder" in refusal(tmp_path)
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


# JPEG at reduced size


def film(height: int, width: int, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth structure with quantum noise, thin bright and dark lines (tubes, fractures) and a marker's edges."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.random((32, 32, channels)), (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = 40 + 160 * smooth.reshape(height, width, channels) + rng.normal(0, 3, (height, width, channels))
    pixels[height // 3 : height // 3 + 3], pixels[:, width // 4 : width // 4 + 2] = 250, 5
    pixels[height // 2 : height * 6 // 10, width // 2 : width * 6 // 10] = 255
    made: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return made if channels > 1 else made[..., 0]


def reduction_error(path: Path, size: int) -> tuple[float, float]:
    """Return the mean and the 99.9th percentile of the difference that decoding at reduced size makes to a canvas."""
    full, reduced = (to_canvas(read_image(path, at_least=at_least), size, 8) for at_least in (None, size))
    assert (full.height, full.width) == (reduced.height, reduced.width)
    difference = np.abs(full.pixels.astype(int) - reduced.pixels)[: full.height, : full.width]
    return float(difference.mean()), float(np.percentile(difference, 99.9))


def is_reduced(path: Path, size: int) -> bool:
    return read_image(path, at_least=size).full_size is not None


@pytest.mark.parametrize("shape", [(1024, 1024), (1023, 1537), (1955, 1841), (3000, 2503), (520, 513)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 75, "progressive": True}])
def test_read_image__reduced_jpeg_is_close(
    tmp_path: Path, shape: tuple[int, int], channels: int, options: dict[str, Any]
) -> None:
    Image.fromarray(film(*shape, channels)).save(tmp_path / "a.jpg", **options)
    assert is_reduced(tmp_path / "a.jpg", 256)
    mean, high = reduction_error(tmp_path / "a.jpg", 256)
    assert mean <= 0.5
    assert high <= 3


def test_read_image__reduced_real_jpeg_is_close(shared: Path) -> None:
    files = sorted((shared / "data/cxr_dev_native").rglob("*.jp*g"))[::40]
    checked = 0
    for path, size in product(files, (32, 64, 128, 160)):
        if is_reduced(path, size):
            mean, high = reduction_error(path, size)
            assert mean <= 0.5
            assert high <= 3
            checked += 1
    assert checked > 80


@pytest.mark.parametrize(
    ("size", "scale"), [(63, 8), (64, 8), (65, 4), (128, 4), (129, 2), (256, 2), (257, 1), (600, 1)]
)
def test_read_image__reduced_jpeg_is_at_least_the_canvas(tmp_path: Path, size: int, scale: int) -> None:
    Image.fromarray(film(300, 512)).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg", at_least=size)
    assert image.pixels.shape == (300 // scale, 512 // scale)
    assert image.full_size == (None if scale == 1 else (300, 512))


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (3, 1000), (9, 15), (17, 1001)])
def test_read_image__reduced_jpeg_of_odd_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(film(*shape)).save(tmp_path / "a.jpg")
    canvases = [to_canvas(read_image(tmp_path / "a.jpg", at_least=at_least), 8, 8) for at_least in (None, 8)]
    assert (canvases[0].height, canvases[0].width) == (canvases[1].height, canvases[1].width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image__orientation_of_jpeg_at_any_size(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    for shape, reduced in (((200, 404), True), ((201, 404), orientation == 1), ((200, 403), orientation == 1)):
        Image.fromarray(film(*shape)).save(tmp_path / "a.jpg", exif=exif)
        with Image.open(tmp_path / "a.jpg") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").pixels, expected)
        assert is_reduced(tmp_path / "a.jpg", 101) == reduced  # a quarter
        mean, high = reduction_error(tmp_path / "a.jpg", 101)
        assert mean <= 0.5
        assert high <= 3


def test_read_image__orientation_that_is_none(tmp_path: Path) -> None:
    for value in (0, 9, 6000):
        exif = Image.Exif()
        exif[274] = value
        Image.fromarray(film(30, 50)).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").pixels.shape == (30, 50)
    Image.fromarray(film(30, 50)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").pixels.shape == (30, 50)


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"subsampling": 2}])
def test_read_image__reduced_jpeg_colours(tmp_path: Path, options: dict[str, Any]) -> None:
    Image.fromarray(film(200, 300, 3)).save(tmp_path / "a.jpg", quality=95, **options)
    for at_least in (None, 64):
        notices = read_image(tmp_path / "a.jpg", at_least=at_least).notices
        assert notices == ("stored in colour; converted to luma (ITU-R BT.601)",)
    assert reduction_error(tmp_path / "a.jpg", 64)[0] <= 0.5


@pytest.mark.parametrize("progressive", [False, True])
def test_read_image__reduced_jpeg_cut_off_anywhere(tmp_path: Path, progressive: bool) -> None:
    Image.fromarray(film(200, 300)).save(tmp_path / "a.jpg", progressive=progressive)
    data = (tmp_path / "a.jpg").read_bytes()
    for cut in [*range(1, 40), *range(40, len(data), len(data) // 40)]:
        (tmp_path / "a.jpg").write_bytes(data[:-cut])
        refusal(tmp_path / "a.jpg", at_least=64)


# Canvas


def test_read_canvas__is_what_training_reads(tmp_path: Path) -> None:
    Image.fromarray(film(500, 300)).save(tmp_path / "a.jpg")
    tree = {"manifest": "m", "root": "r", "canvas_size": 64, "bit_depth": 16, "max_pixels": 150_000}
    canvas, notices = read_canvas(tmp_path / "a.jpg", 1, DataSettings.model_validate(tree))
    expected = to_canvas(read_image(tmp_path / "a.jpg", at_least=64), 64, 16)
    np.testing.assert_array_equal(canvas.pixels, expected.pixels)
    assert (canvas.height, canvas.width, notices) == (64, 38, ())
    with pytest.raises(ImageError, match=r"300 x 500 pixels exceed data\.max_pixels"):
        read_canvas(tmp_path / "a.jpg", 1, DataSettings.model_validate(tree | {"max_pixels": 149_999}))


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


def test_file_format__of_an_array_is_its_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    assert file_format(tmp_path / "a.npy") == ("NPY", 32, "float32")


def test_size_in_header__of_every_kind_without_decoding(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30), np.uint8)
    for kind in ("PNG", "TIFF", "JPEG"):
        Image.fromarray(pixels).save(tmp_path / kind, kind)
        assert size_in_header(tmp_path / kind) == (20, 30)
    save_dicom(tmp_path / "dicom", RAMP12)
    assert size_in_header(tmp_path / "dicom") == RAMP12.shape
    content = (tmp_path / "PNG").read_bytes()
    (tmp_path / "cut").write_bytes(content[:50])  # its pixels are gone
    assert size_in_header(tmp_path / "cut") == (20, 30)
    (tmp_path / "text").write_text("not an image")
    np.save(tmp_path / "bands.npy", pixels)
    assert [size_in_header(tmp_path / name) for name in ("text", "gone", "bands.npy", "")] == [None] * 4
