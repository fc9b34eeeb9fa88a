"""NRRD and MetaImage files: orientation against plain loops, detached data, and every refusal."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.nrrd_metaimage import kind_of
from medmoco.data.volume_io.reading import inspect_volume, read_volume
from medmoco.errors import ImageError
from tests.helpers.mutations import mutated
from tests.helpers.volume_files import AXIAL, CORONAL, SAGITTAL, assert_voxels, normal_of, volume_refusal

sitk = pytest.importorskip("SimpleITK")

VALUES = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)  # (I, J, K)
NRRD = (
    "NRRD0005\ntype: short\ndimension: 3\nspace: {space}\nsizes: 5 6 7\n"
    "space directions: (0.7,0,0) (0,0.8,0) (0,0,2.5)\n"
    "kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (-30,20,10)\n"
)
MHD = (
    "ObjectType = Image\nNDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -30 20 10\n"
    "ElementSpacing = 0.7 0.8 2.5\nDimSize = 5 6 7\nElementType = MET_SHORT\nElementDataFile = {file}\n"
)


def save(path: Path, values: NDArray[Any] = VALUES, cosines: tuple[float, ...] = AXIAL, compress: bool = False) -> Path:
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30, 20, 10))
    image.SetDirection(np.stack([cosines[:3], cosines[3:], normal_of(cosines)], axis=1).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path


def raw(values: NDArray[Any] = VALUES) -> bytes:
    return values.astype("<i2").tobytes(order="F")


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd", "nhdr"])
@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, SAGITTAL])
def test_orientation(tmp_path: Path, suffix: str, cosines: tuple[float, ...]) -> None:
    path = save(tmp_path / f"a.{suffix}", cosines=cosines, compress=suffix in ("nrrd", "mhd"))
    volume, normal = read_volume(path), normal_of(cosines)

    def ras(index: tuple[int, ...]) -> tuple[float, float, float]:
        left, back, up = (
            (-30, 20, 10)[axis]
            + 0.7 * index[0] * cosines[axis]
            + 0.8 * index[1] * cosines[3 + axis]
            + 2.5 * index[2] * normal[axis]
            for axis in range(3)
        )
        return -left, -back, up

    assert_voxels(volume, ((ras(index), value) for index, value in np.ndenumerate(VALUES)), VALUES.size)
    assert volume.slice_axis == int(np.abs(normal).argmax())
    assert volume.notices == ()
    header = inspect_volume(path)
    assert header.shape == volume.values.shape
    assert len(header.files) == (2 if suffix in ("mhd", "nhdr") else 1)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_nrrd__spaces(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD.format(space=space).encode() + b"\n" + raw())
    grid = np.diag([*np.multiply(signs, (0.7, 0.8, 2.5)), 1])
    grid[:3, 3] = np.multiply(signs, (-30, 20, 10))
    points = (((grid @ [*index, 1])[:3], value) for index, value in np.ndenumerate(VALUES))
    assert_voxels(read_volume(path), points, VALUES.size)
    assert inspect_volume(path).faults == ()


def test_nrrd__without_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    for header in (NRRD.format(space="scanner-xyz"), NRRD.replace("space: {space}", "space dimension: 3")):
        path.write_bytes(header.encode() + b"\n" + raw())
        assert [fault.kind for fault in inspect_volume(path).faults] == ["no_orientation"]
        assert "left and right" in read_volume(path).notices[0]


def test_metaimage__without_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    text = MHD.format(file="LOCAL").replace("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")
    path.write_bytes(text.encode() + raw())
    assert [fault.kind for fault in inspect_volume(path).faults] == ["no_orientation"]


def test_detached__in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "data.raw").write_bytes(raw())
    path = tmp_path / "a.mhd"
    path.write_text(MHD.format(file="data.raw"))
    np.testing.assert_array_equal(read_volume(path).values[::-1, ::-1], VALUES)
    assert [file.name for file in inspect_volume(path).files] == ["a.mhd", "data.raw"]
    assert "data.max_bytes" in volume_refusal(path, limits=Limits(max_bytes=419))


@pytest.mark.parametrize(
    "name", ["../data.raw", "/etc/passwd", "below/data.raw", "..\\data.raw", "LIST", "data%03d.raw 1 7 1"]
)
def test_detached__elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a/below").mkdir(parents=True)
    for file in ("data.raw", "a/data.raw", "a/below/data.raw"):
        (tmp_path / file).write_bytes(raw())
    (tmp_path / "a/a.mhd").write_text(MHD.format(file=name))
    assert "in several files or in another folder" in volume_refusal(tmp_path / "a/a.mhd")
    for field in ("data file", "datafile", "DATA FILE"):
        (tmp_path / "a/a.nhdr").write_text(NRRD.format(space="RAS") + f"{field}: {name}\n")
        assert "in several files or in another folder" in volume_refusal(tmp_path / "a/a.nhdr")


def test_detached__missing_or_not_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mhd"
    path.write_text(MHD.format(file="data.raw"))
    assert "in a second file, which is missing" in volume_refusal(path)
    os.mkfifo(tmp_path / "data.raw")
    assert "in a second file, which is missing" in volume_refusal(path)


def test_truncated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, header in (("a.nrrd", NRRD.format(space="RAS") + "\n"), ("a.mha", MHD.format(file="LOCAL"))):
        path = tmp_path / name
        path.write_bytes(header.encode() + raw()[:-30])
        assert "obtain it again" in volume_refusal(path)
        packed = save(tmp_path / f"b{path.suffix}", compress=True)
        packed.write_bytes(packed.read_bytes()[:-40])
        assert "obtain it again" in volume_refusal(packed)
        path.write_bytes(header.encode()[:60])
        volume_refusal(path)
    assert str(tmp_path) not in "".join(capfd.readouterr())


def test_several_volumes_and_other_voxels(tmp_path: Path) -> None:
    for suffix in ("nrrd", "mha"):
        path = tmp_path / f"a.{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 5, 6, 7), np.int16), isVector=False), str(path))
        assert "3 volumes" in volume_refusal(path)
        sitk.WriteImage(sitk.GetImageFromArray(VALUES.transpose(2, 1, 0)[None], isVector=False), str(path))
        assert read_volume(path).values.shape == (5, 6, 7)
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True), str(path))
        assert "colours, vectors or complex" in volume_refusal(path)
        sitk.WriteImage(sitk.GetImageFromArray(VALUES[0]), str(path))
        assert "a single slice" in volume_refusal(path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_types(tmp_path: Path, dtype: str) -> None:
    values = np.clip(VALUES, 0, 100).astype(dtype)
    for suffix in ("nrrd", "mha"):
        np.testing.assert_array_equal(read_volume(save(tmp_path / f"a.{suffix}", values)).values[::-1, ::-1], values)


def test_limits(tmp_path: Path) -> None:
    for suffix in ("nrrd", "mha"):
        path = save(tmp_path / f"a.{suffix}", np.zeros((50, 50, 50), np.int16), compress=True)
        assert path.stat().st_size < 5000
        assert "data.max_bytes" in volume_refusal(path, limits=Limits(max_bytes=249_999))
        assert "data.max_frames" in volume_refusal(path, limits=Limits(max_frames=49))


def test_not_finite(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = np.nan
    assert "1 of 210 voxels" in volume_refusal(save(tmp_path / "a.nrrd", values))


def test_mutated_files_end_in_voxels_or_our_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    headers = {"a.nrrd": NRRD.format(space="RAS") + "\n", "a.mha": MHD.format(file="LOCAL")}
    seeds = {name: header.encode() + raw() for name, header in headers.items()}
    messages, volumes = set(), 0
    for name in seeds:
        for case in range(60):
            path = tmp_path / name
            path.write_bytes(mutated(seeds, name, case))
            try:
                volumes += np.isfinite(read_volume(path, limits=Limits(max_bytes=10**6)).values).all()
            except ImageError as error:
                messages.add(str(error))
    assert volumes > 10
    assert len(messages) > 3
    assert not any(str(tmp_path) in text for text in (*messages, *capfd.readouterr()))


def test_kind_of__content() -> None:
    assert kind_of(b"NRRD0004\n") == "NRRD"
    assert kind_of(b"ObjectType = Image\n") == "MetaImage"
    assert kind_of(b"NDims= 3\n") == "MetaImage"
    assert kind_of(b"NRRDx") is None
