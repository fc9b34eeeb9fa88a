from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.masks.masks import (
    IGNORED,
    MOST_CLASSES,
    SAME_PLACE,
    Classes,
    Mask,
    check_mask,
    distinct_values,
    read_mask,
    stored_values,
    unnamed_classes,
)

DATA = DataSettings(manifest=Path(), root=".")
VOLUMES = DataSettings(manifest=Path(), root=".", dimensions=3, window="percentiles")
ORGANS = Classes(("liver", "spleen", "lesion"), (6, 1, 200), ignore=7)
VALUES = np.random.default_rng(0).choice([0, 1, 6, 7, 200], (5, 9))


def numbers_oracle(values: NDArray[Any], classes: Classes) -> list[int]:
    """Look up each value, one after the other."""
    found = []
    for value in values.ravel().tolist():
        if value == 0:
            found.append(0)
        elif value == classes.ignore:
            found.append(IGNORED)
        else:
            found.append(1 + classes.values.index(int(value)))
    return found


def grey_png(values: NDArray[Any], bits: int, colour: int = 0) -> bytes:
    """Return a PNG file chunk by chunk, of any depth. Source: PNG, third edition, sections 7.2 and 11.2."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    lines = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row.tolist())
        text += "0" * (-len(text) % 8)
        lines += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">LLBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    colours = b"".join(bytes([7 * index % 256, 255 - index, 3]) for index in range(min(2**bits, 256)))
    palette = chunk(b"PLTE", colours) if colour == 3 else b""
    body = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refusal(source: Path, classes: Classes = ORGANS, data: DataSettings = DATA) -> str:
    with pytest.raises(ImageError) as refused:
        read_mask(str(source), classes, data=data)
    message = str(refused.value)
    assert str(source) not in message
    assert source.name not in message
    assert len(message.splitlines()) <= 4
    return message


# ---- classes ----


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (((), ()), "0 classes; give 1 to 253"),
        ((tuple(map(str, range(254))), tuple(range(1, 255))), "254 classes"),
        ((("a", "a"), (1, 2)), "a name of its own"),
        ((("a", " "), (1, 2)), "a name of its own"),
        ((("a", "b"), (1, 1)), "a value of its own"),
        ((("a", "b"), (1,)), "a value of its own"),
        ((("a", "b"), (1, 0)), r"segmentation\.classes: the value 0 is background"),
        ((("a", "b"), (1, 2), 2), r"segmentation\.ignore: 2 is the value of background or of a class"),
        ((("a", "b"), (1, 2), 0), r"segmentation\.ignore: 0 is the value"),
        ((("a",), (70_000,)), "from -32768 to 65535"),
        ((("a",), (1,), -(2**40)), "from -32768 to 65535"),
    ],
)
def test_classes__what_they_cannot_be(classes: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Classes(*classes)


def test_unnamed_classes__are_named_by_their_values() -> None:
    assert unnamed_classes([4, 9], ignore=7) == Classes(("class 4", "class 9"), (4, 9), 7)
    assert len(unnamed_classes(range(1, MOST_CLASSES + 1))) == MOST_CLASSES


@given(st.sets(st.integers(-(2**15), 2**16 - 1).filter(bool), min_size=2, max_size=MOST_CLASSES + 1), st.data())
def test_stored_values__are_the_inverse_of_reading(tmp_path_factory: Any, values: set[int], data: Any) -> None:
    ignore, *own = sorted(values, key=lambda value: hash((value, 5)))
    classes = unnamed_classes(own, ignore)
    number = st.one_of(st.integers(0, len(own)), st.just(IGNORED))
    numbers = data.draw(arrays(np.uint8, (3, 4), elements=number))
    stored = stored_values(numbers, classes)
    np.save(file := tmp_path_factory.mktemp("stored") / "a.npy", stored)
    np.testing.assert_array_equal(read_mask(str(file), classes, data=DATA).numbers, numbers)
    assert numbers_oracle(stored, classes) == numbers.ravel().tolist()


def test_stored_values__in_the_smallest_type() -> None:
    numbers = np.array([[0, 1]], np.uint8)
    for value, dtype in [(255, np.uint8), (256, np.uint16), (40_000, np.uint16), (-3, np.int16)]:
        stored = stored_values(numbers, unnamed_classes([value]))
        assert stored.dtype == dtype
        assert stored.tolist() == [[0, value]]
    assert stored_values(numbers, unnamed_classes([40_000], -1)).dtype == np.int32


# ---- images ----


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_read_mask__png_gives_stored_numbers_at_any_depth(tmp_path: Path, bits: int, colour: int) -> None:
    most = min(2**bits, 240)
    values = np.random.default_rng(bits).integers(0, most, (5, 13)) * (257 if bits == 16 else 1)
    classes = unnamed_classes([int(value) for value in np.unique(values) if value])
    (tmp_path / "a.png").write_bytes(grey_png(values, bits, colour))
    found = read_mask(str(tmp_path / "a.png"), classes, data=DATA)
    assert found.affine is None
    assert found.numbers.dtype == np.uint8
    assert found.numbers.ravel().tolist() == numbers_oracle(values, classes)
    assert distinct_values(str(tmp_path / "a.png"), DATA) == set(np.unique(values).tolist())


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i2", "<i4", "<i8", "<f4"])
def test_read_mask__npy_of_any_type_of_whole_numbers(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(VALUES.astype(dtype)))
    found = read_mask(str(tmp_path / "a.npy"), ORGANS, data=DATA).numbers
    assert found.ravel().tolist() == numbers_oracle(VALUES, ORGANS)


def test_read_mask__png_is_turned_as_the_image_of_the_same_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise
    Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    found = read_mask(str(tmp_path / "a.png"), ORGANS, data=DATA).numbers
    assert found.ravel().tolist() == numbers_oracle(np.rot90(VALUES, -1), ORGANS)


def test_read_mask__a_value_without_a_class(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 6], [201, 8]], np.uint8)).save(tmp_path / "a.png")
    message = refusal(tmp_path / "a.png")
    assert "the value 201, which is that of no class (liver: 6, spleen: 1, lesion: 200)" in message
    assert "segmentation.classes, or set segmentation.ignore=201" in message
    for value in (-1, 5, 2**40, -(2**40)):
        np.save(tmp_path / "b.npy", np.array([[0, value]]))
        assert f"the value {value}, which" in refusal(tmp_path / "b.npy")
    for text in ("0.5", "-0.25"):
        np.save(tmp_path / "c.npy", np.array([[6, float(text)]]))
        assert f"the value {text}, but a class is a whole number" in refusal(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array([[6, 1e30]]))
    assert "which is that of no class" in refusal(tmp_path / "d.npy")


def test_read_mask__what_is_no_mask(tmp_path: Path) -> None:
    def written(name: str, mode: str, **options: Any) -> Path:
        Image.new(mode, (4, 3)).save(tmp_path / name, **options)
        return tmp_path / name

    for mode in ("RGB", "RGBA", "LA"):
        assert "colours or transparency" in refusal(written("a.png", mode))
    assert "is a JPEG file; save it as a grayscale PNG or TIFF" in refusal(written("b.jpg", "L"))
    content = grey_png(np.random.default_rng(0).integers(0, 2, (90, 90)), 8)
    (tmp_path / "d.png").write_bytes(content[: len(content) // 2])
    assert "cannot be decoded" in refusal(tmp_path / "d.png")
    np.save(tmp_path / "e.npy", np.zeros((2, 3, 4)))
    assert "has 3 axes" in refusal(tmp_path / "e.npy")
    np.save(tmp_path / "f.npy", np.array([[0, np.nan]]))
    assert "not finite" in refusal(tmp_path / "f.npy")
    np.save(tmp_path / "g.npy", np.array([[{}]]), allow_pickle=True)
    assert "NumPy array" in refusal(tmp_path / "g.npy")
    assert "the file does not exist" in refusal(tmp_path / "no.png")


def test_read_mask__limits(tmp_path: Path) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros((40, 30), np.uint8))
    few = DATA.model_copy(update={"max_pixels": 1000})
    for name in ("a.png", "a.npy"):
        assert "30 x 40 pixels exceed data.max_pixels" in refusal(tmp_path / name, data=few)
        assert "exceed data.max_bytes" in refusal(tmp_path / name, data=DATA.model_copy(update={"max_bytes": 10}))


# ---- volumes ----


def test_read_mask__volumes_of_any_format_have_the_axes_of_their_image(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    values = rng.choice([0, 1, 6, 7, 200], (4, 5, 6)).astype(np.float32)  # some tools write masks as floats
    affine = np.array([[0, -2, 0, 9], [0, 0, 3, 8], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0).astype(np.uint8))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image.SetSpacing([1.0, 2.0, 3.0])
    image.SetDirection((lps[:3, :3] / [1, 2, 3]).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for name in ("b.nrrd", "c.mha", "d.nii"):
        sitk.WriteImage(image, str(tmp_path / name))
    for name in ("a.nii.gz", "b.nrrd", "c.mha", "d.nii"):
        found = read_mask(str(tmp_path / name), ORGANS, data=VOLUMES)
        theirs = read_volume(tmp_path / name)
        assert found.affine is not None
        np.testing.assert_allclose(found.affine, theirs.affine)
        check_mask(found, theirs.values.shape, theirs.affine)
        for index, value in np.ndenumerate(values):
            point = affine @ [*index, 1.0]
            x, y, z = np.rint(np.linalg.solve(found.affine, point)[:3]).astype(int)
            assert found.numbers[x, y, z] == numbers_oracle(np.array([value]), ORGANS)[0]


def test_read_mask__volume_from_npy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice([0, 1, 6], (3, 4, 5)).astype(np.int32)
    np.save(tmp_path / "a.npy", values)
    found = read_mask(str(tmp_path / "a.npy"), ORGANS, data=VOLUMES)
    assert found.numbers.ravel().tolist() == numbers_oracle(values, ORGANS)
    np.save(tmp_path / "b.npy", np.where(values == 6, 5, values))
    assert "the value 5, which is that of no class" in refusal(tmp_path / "b.npy", data=VOLUMES)


def test_read_mask__interpolated_volume_is_refused(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), np.float32)
    values[2, 1, 3] = 0.5
    np.save(tmp_path / "a.npy", values)
    message = refusal(tmp_path / "a.npy", data=VOLUMES)
    assert "the mask has the value 0.5, but a class is a whole number" in message
    assert "nearest neighbours" in message


# ---- masks and their images ----


def mask_of(shape: tuple[int, ...], affine: NDArray[np.float64] | None = None) -> Mask:
    return Mask(np.zeros(shape, np.uint8), affine)


def mismatch(mask: Mask, shape: tuple[int, ...], affine: NDArray[np.float64] | None = None) -> str:
    with pytest.raises(ImageError) as refused:
        check_mask(mask, shape, affine)
    assert len(str(refused.value).splitlines()) <= 4
    return str(refused.value)


def test_check_mask__shape() -> None:
    check_mask(mask_of((3, 4)), (3, 4))
    assert "the mask has 4 x 3 pixels, but its image has 3 x 4 pixels" in mismatch(mask_of((3, 4)), (4, 3))
    message = mismatch(mask_of((3, 4, 5), np.eye(4)), (3, 4, 6), np.eye(4))
    assert "the mask has 3 x 4 x 5 voxels, but its image has 3 x 4 x 6 voxels" in message
    assert "nearest neighbours" in message


def test_check_mask__place() -> None:
    shape, affine = (101, 51, 11), np.diag([0.5, 0.5, 5.0, 1.0])
    check_mask(mask_of(shape, affine), shape, affine)
    for axis, spacing in enumerate((0.5, 0.5, 5.0)):
        for share, accepted in ((0.9, True), (1.1, False)):
            moved = affine.copy()
            moved[axis, 3] += share * SAME_PLACE * spacing
            if accepted:
                check_mask(mask_of(shape, moved), shape, affine)
            else:
                message = mismatch(mask_of(shape, moved), shape, affine)
                assert f"voxels are up to {share * SAME_PLACE * spacing:.3g} mm apart;\n" in message
    for shift, accepted in ((0.01, True), (0.25, False)):  # rounding, and a corner of a voxel for its centre
        moved = affine.copy()
        moved[:3, 3] += shift
        if accepted:
            check_mask(mask_of(shape, moved), shape, affine)
        else:
            mismatch(mask_of(shape, moved), shape, affine)
    stretched = affine @ np.diag([1.1, 1, 1, 1])
    message = mismatch(mask_of(shape, stretched), shape, affine)
    assert "up to 5 mm apart, with a spacing of 0.55 x 0.5 x 5 instead of 0.5 x 0.5 x 5 mm;" in message
    cos, sin = np.cos(np.radians(10)), np.sin(np.radians(10))
    turned = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    assert "and turned by 10 degrees;" in mismatch(mask_of(shape, turned), shape, affine)
    assert "spacing" not in mismatch(mask_of(shape, turned), shape, affine)
    slightly = affine @ np.diag([1 + 1e-6, 1, 1, 1])  # rounding
    check_mask(mask_of(shape, slightly), shape, affine)
