"""NIfTI files: orientation against plain loops and nibabel, scaling, and every refusal."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.reading import inspect_volume, read_volume
from tests.helpers.volume_files import assert_voxels, volume_refusal

nib = pytest.importorskip("nibabel")

VALUES = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)


def save(path: Path, values: NDArray[Any] = VALUES, affine: NDArray[Any] | None = None) -> Path:
    """Write a NIfTI file with equal qform and sform."""
    image = nib.Nifti1Image(values, np.diag([0.7, 0.8, 2.5, 1]) if affine is None else affine)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    nib.save(image, path)
    return path


def oriented(codes: str) -> NDArray[np.float64]:
    """Return a slightly oblique matrix whose axes run towards these sides, with spacings 0.7, 0.8 and 2.5 mm."""
    turn = nib.eulerangles.euler2mat(0.05, -0.1, 0.07)
    signs = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (1, 1, 1))[:3, :3].T
    affine = np.eye(4)
    affine[:3, :3] = turn @ signs @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = -30, 20, 10
    return affine


def patched(path: Path, offset: int, form: str, *values: Any) -> Path:
    """Overwrite a field of an uncompressed file."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    return path


def kinds(path: Path) -> list[str]:
    return [fault.kind for fault in inspect_volume(path).faults]


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SAL", "ILP", "ARS"])
def test_nifti__orientation(tmp_path: Path, codes: str) -> None:
    affine = oriented(codes)
    path = save(tmp_path / "a.nii.gz", affine=affine)
    stored = nib.load(path).affine  # float32 in the file
    volume = read_volume(path)
    assert volume.slice_axis == next(i for i, pair in enumerate(("RL", "AP", "SI")) if codes[2] in pair)
    assert_voxels(volume, (((stored @ [*index, 1])[:3], value) for index, value in np.ndenumerate(VALUES)), VALUES.size)
    theirs = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.values, theirs.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, theirs.affine)
    assert volume.notices == ()


def test_nifti__real_files_as_nibabel(shared: Path) -> None:
    volumes = shared / "data/volumes"
    files = [*sorted(volumes.glob("*.nii.gz")), *sorted((volumes / "hippocampus").rglob("*.nii.gz"))[::40]]
    assert len(files) > 8
    for file in files:
        volume, theirs = read_volume(file), nib.as_closest_canonical(nib.load(file))
        np.testing.assert_array_equal(volume.values, theirs.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, theirs.affine)
        assert inspect_volume(file).shape == theirs.shape


def test_nifti__slope_and_intercept(tmp_path: Path) -> None:
    path = patched(save(tmp_path / "a.nii"), 112, "<2f", 0.25, -10)
    np.testing.assert_array_equal(read_volume(path).values, VALUES * 0.25 - 10)
    np.testing.assert_array_equal(read_volume(path).values, nib.load(path).get_fdata())
    patched(path, 112, "<f", 0.0)  # a slope of 0 means none
    np.testing.assert_array_equal(read_volume(path).values, VALUES)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i2", "<i4", "<f4", ">f8"])
def test_nifti__types_versions_and_suffixes(tmp_path: Path, dtype: str) -> None:
    values = np.clip(VALUES, 0, 100).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    nib.save(nib.Nifti1Image(values, np.eye(4), header), tmp_path / "a.nii")
    nib.save(nib.Nifti2Image(values, np.eye(4)), tmp_path / "b.nii.gz")
    (tmp_path / "c.bin").write_bytes((tmp_path / "b.nii.gz").read_bytes())  # the content decides
    for name in ("a.nii", "b.nii.gz", "c.bin"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).values, values)


def test_nifti__slice_axis(tmp_path: Path) -> None:
    cubes = np.diag([1, 1, 1, 1.0])
    assert read_volume(save(tmp_path / "a.nii", affine=cubes)).slice_axis == 2
    image = nib.Nifti1Image(VALUES, cubes)
    image.header.set_dim_info(freq=1, phase=2, slice=0)
    nib.save(image, tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").slice_axis == 0
    assert inspect_volume(tmp_path / "b.nii").slices == 5
    assert read_volume(save(tmp_path / "c.nii", affine=np.diag([1, 3, 1, 1]))).slice_axis == 1


def test_nifti__several_volumes(tmp_path: Path) -> None:
    single = read_volume(save(tmp_path / "a.nii", VALUES[..., None]))
    np.testing.assert_array_equal(single.values, VALUES)
    message = volume_refusal(save(tmp_path / "b.nii", np.stack([VALUES] * 3, axis=-1)))
    assert message.startswith("the file has 3 volumes (shape 5 x 6 x 7 x 3")
    assert "12 volumes" in volume_refusal(save(tmp_path / "c.nii", np.zeros((5, 6, 7, 3, 4), np.int16)))
    assert kinds(save(tmp_path / "d.nii", VALUES[..., 0])) == ["single_slice"]
    assert "a single slice" in volume_refusal(save(tmp_path / "e.nii", VALUES[..., :1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nifti__values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    values = VALUES.astype(np.float64)
    values[1, 2, 3] = values[0, 0, 0] = bad
    assert "2 of 210 voxels are not finite" in volume_refusal(save(tmp_path / "a.nii", values))


def test_nifti__qform_and_sform_that_disagree(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, oriented("RAS"))
    image.set_sform(oriented("LAS"), code=1)
    image.set_qform(oriented("RAS"), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert kinds(tmp_path / "a.nii") == ["left_right_conflict"]
    assert "disagree on left and right" in volume_refusal(tmp_path / "a.nii")
    image.set_sform(oriented("LPS"), code=1)  # a rotation, no mirror image, but left and right differ
    nib.save(image, tmp_path / "b.nii")
    assert kinds(tmp_path / "b.nii") == ["left_right_conflict"]
    image.set_qform(oriented("RAS"), code=0)  # a matrix without a code does not count
    nib.save(image, tmp_path / "c.nii")
    assert kinds(tmp_path / "c.nii") == []
    image.set_qform(oriented("LPS") @ nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2)), code=2)
    nib.save(image, tmp_path / "d.nii")
    assert kinds(tmp_path / "d.nii") == []


def test_nifti__without_orientation(tmp_path: Path) -> None:
    path = patched(save(tmp_path / "a.nii"), 252, "<2h", 0, 0)
    assert kinds(path) == ["no_orientation"]
    volume = read_volume(path)
    assert "left and right may be exchanged" in volume.notices[0]
    np.testing.assert_array_equal(volume.values, nib.as_closest_canonical(nib.load(path)).get_fdata())
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))


def test_nifti__only_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, None)
    image.set_qform(oriented("PIR"), code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    volume, theirs = read_volume(tmp_path / "a.nii"), nib.as_closest_canonical(nib.load(tmp_path / "a.nii"))
    np.testing.assert_array_equal(volume.values, theirs.get_fdata())
    np.testing.assert_allclose(volume.affine, theirs.affine)


def test_nifti__sheared_axes(tmp_path: Path) -> None:
    affine = np.diag([0.7, 0.8, 2.5, 1])
    affine[1, 2] = 2.5 * np.tan(np.radians(12))
    image = nib.Nifti1Image(VALUES, affine)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    assert kinds(tmp_path / "a.nii") == ["gantry_tilt"]
    assert "12.0 degrees" in volume_refusal(tmp_path / "a.nii")


def test_nifti__units(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, np.diag([7e-4, 8e-4, 25e-4, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert volume.notices == ("its unit is meter; its spacing is converted to mm",)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "b.nii")
    assert kinds(tmp_path / "b.nii") == ["odd_spacing"]


def test_nifti__damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    whole = path.read_bytes()
    for end in (-1, 400, 348, 300):
        path.write_bytes(whole[:end])
        assert "obtain it again" in volume_refusal(path) or end == 300
    packed = gzip.compress(whole)
    for data in (packed[:-20], packed[:200], packed[:-6] + b"\0" + packed[-5:], packed[:100] + b"\7" + packed[101:]):
        path.write_bytes(data)
        assert "obtain it again" in volume_refusal(path)
    path.write_bytes(gzip.compress(b"text"))
    assert "its content is not NIfTI" in volume_refusal(path)


def test_nifti__unusable_headers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    whole = path.read_bytes()
    for offset, form, values, words in (
        (70, "<h", (128,), "colours or complex"),
        (280, "<4f", (0, 0, 0, 0), "does not describe three axes"),
        (280, "<4f", (np.nan, 0, 0, 0), "does not describe three axes"),
        (42, "<h", (-5,), "header"),
        (108, "<f", (1e9,), "too small"),
        (112, "<2f", (2, np.nan), "decoded"),
        (344, "<4s", (b"ni1\0",), "pair of .hdr and .img"),
        (344, "<4s", (b"\0\0\0\0",), "pair of .hdr and .img"),  # Analyze
    ):
        path.write_bytes(whole)
        assert words in volume_refusal(patched(path, offset, form, *values))
    colours = np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colours or complex" in volume_refusal(save(tmp_path / "b.nii", colours))
    assert "colours or complex" in volume_refusal(save(tmp_path / "c.nii", VALUES.astype(np.complex64)))


def test_nifti__bombs_and_limits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    patched(path, 42, "<3h", 9000, 9000, 9000)
    bomb = tmp_path / "b.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes()))
    assert "data.max_voxels" in volume_refusal(bomb)
    assert "data.max_bytes" in volume_refusal(bomb, limits=Limits(max_voxels=10**12))
    assert "too small" in volume_refusal(bomb, limits=Limits(max_bytes=10**13, max_voxels=10**12))
    patched(path, 42, "<3h", 20000, 20000, 1)
    assert "data.max_pixels" in volume_refusal(path)
    patched(path, 42, "<3h", 5, 6, 20000)
    assert "data.max_frames" in volume_refusal(path)
    packed = save(tmp_path / "c.nii.gz", np.zeros((50, 50, 50), np.int16))
    assert packed.stat().st_size < 5000
    assert read_volume(packed, limits=Limits(max_bytes=250_000)).values.shape == (50, 50, 50)
    assert "data.max_bytes" in volume_refusal(packed, limits=Limits(max_bytes=249_999))


def test_nifti__extensions_are_not_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"secret-4711" * 1000))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").values, VALUES)


def test_nifti__nibabel_prints_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = patched(save(tmp_path / "a.nii"), 80, "<f", -0.7)  # a negative spacing, which nibabel repairs and reports
    assert nib.load(path).header is not None
    assert caplog.records
    caplog.clear()
    read_volume(path)
    assert not caplog.records
