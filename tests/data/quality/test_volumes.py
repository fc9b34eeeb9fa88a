"""Volumes read as training reads them: what is reported does not depend on how they are stored."""

from __future__ import annotations

import ast
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medmoco.data import volume_io
from medmoco.data.image_io.fingerprints import pattern
from medmoco.data.quality.volumes import (
    VOLUME_FAULTS,
    VolumeFormat,
    fault_name,
    summarise_volume,
    volume_fault_kind,
    voxel_digest,
)
from medmoco.data.volume_io.canvases import read_volume_canvas
from medmoco.data.volume_io.headers import SINGLE_SLICE
from medmoco.data.volume_io.reading import read_volume
from tests.helpers.volume_files import random_pixels, save_enhanced, save_series, volume_refusal
from tests.helpers.volume_packs import data_for, write_nifti


def save_again(source: Path, target: Path, axes: str = "RAS") -> None:
    """Write a volume as NIfTI in another order of its voxels."""
    volume = read_volume(source)
    image = nibabel.Nifti1Image(volume.values, volume.affine)
    order = nibabel.orientations.axcodes2ornt(tuple(axes))
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), order)),
                 target)  # fmt: skip


def test_voxel_digest__is_of_values_in_space(tmp_path: Path) -> None:
    save_series(tmp_path / "series", random_pixels())
    names = [f"{position}.dcm" for position in (3, 0, 4, 1, 2)]
    save_series(tmp_path / "mixed", random_pixels(), names=names, InstanceNumber=lambda k: 9 - k)
    save_again(tmp_path / "series", tmp_path / "a.nii.gz")
    save_again(tmp_path / "series", tmp_path / "b.nii", "PSL")
    np.save(tmp_path / "c.npy", read_volume(tmp_path / "series").values)
    digests = {
        voxel_digest(read_volume(tmp_path / name).values) for name in ("series", "mixed", "a.nii.gz", "b.nii", "c.npy")
    }
    assert len(digests) == 1
    values = np.ascontiguousarray(read_volume(tmp_path / "series").values)
    changed = values.copy()
    changed[1, 2, 3] += 1
    others = [changed, values[::-1], values.reshape(values.shape[::-1]), values[:, :, :-1]]
    assert len(digests | {voxel_digest(other) for other in others}) == 5


def test_voxel_digest__of_zeros_of_either_sign() -> None:
    zeros = np.zeros((2, 3, 4), np.float32)
    assert voxel_digest(zeros) == voxel_digest(-zeros)


def test_summarise_volume__is_what_reading_gives(tmp_path: Path) -> None:
    pixels = np.zeros((9, 40, 30), np.uint16)
    pixels[2:7, 10:30, 8:24] = random_pixels(5, 20, 16) // 2 + 1024
    save_series(tmp_path / "series", pixels)
    data = data_for(tmp_path, window=(0, 2000), spacing=(1.4, 1.6, 2.5))
    found = summarise_volume(str(tmp_path / "series"), "1.2.3", data)
    canvas, _ = read_volume_canvas(tmp_path / "series", "", data)
    assert found.size == (30, 40, 9)
    assert found.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert found.canvas == canvas.shape
    assert max(found.canvas) < 20  # cropped to the body
    assert found.slice_axis == 2
    assert found.format == VolumeFormat("DICOM series", "CT")
    assert found.faults == found.notices == ()
    plain = np.array([[canvas.pixels[x, :, z].mean() for z in range(canvas.shape[2])] for x in range(canvas.shape[0])])
    assert np.abs(found.pattern.astype(int) - pattern(plain.astype(np.float32))).max() <= 1


def test_summarise_volume__formats(tmp_path: Path) -> None:
    pixels = random_pixels()
    save_enhanced(tmp_path / "a.dcm", pixels, [(0, 0, 2.0 * k) for k in range(5)])
    write_nifti(tmp_path / "b.nii.gz", pixels)
    np.save(tmp_path / "c.npy", pixels)
    header = b"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n\n"
    (tmp_path / "d.nrrd").write_bytes(header + pixels.tobytes())
    data = data_for(tmp_path)
    found = [summarise_volume(str(tmp_path / name), "", data) for name in ("a.dcm", "b.nii.gz", "c.npy", "d.nrrd")]
    assert [one.format for one in found] == [
        ("multi-frame DICOM", "MR"), ("NIfTI", ""), ("NPY", ""), ("NRRD", "")
    ]  # fmt: skip
    assert [notice.partition(":")[0] for one in found for notice in one.notices] == ["no orientation"] * 2


def test_summarise_volume__faults_end_the_reading(tmp_path: Path) -> None:
    files = save_series(tmp_path / "series", random_pixels(9))
    files[4].unlink()
    (tmp_path / "series/notes.txt").touch()
    found = summarise_volume(str(tmp_path / "series"), "", data_for(tmp_path))
    assert [kind for kind, _ in found.faults] == ["missing slices"]
    assert found.faults[0][1] == volume_refusal(tmp_path / "series")
    assert found.size == (0, 0, 0)


def test_summarise_volume__warnings_have_their_kind_and_constant_volumes_are_told_from_blank_canvases(
    tmp_path: Path,
) -> None:
    save_series(tmp_path / "series", random_pixels(5, 20, 20))
    (tmp_path / "series/notes.txt").touch()
    write_nifti(tmp_path / "constant.nii", np.full((9, 9, 9), 7, np.int16), (30, 1, 1))
    air = data_for(tmp_path, window=(-5000, 10))
    notices = {
        name: [notice.split(":")[0] for notice in summarise_volume(str(tmp_path / name), "", data).notices]
        for name, data in {"series": air, "constant.nii": data_for(tmp_path)}.items()
    }
    assert notices == {
        "series": ["other files in the folder", "blank canvas"],
        "constant.nii": ["odd spacing", "constant"],
    }


def test_volume_faults__are_all_that_readers_find() -> None:
    """A kind that is not listed would be reported, but not among the checks that found nothing."""
    calls = [
        node
        for file in Path(volume_io.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VolumeFault"
    ]
    assert all(isinstance(call.args[0], ast.Constant) for call in calls)
    faults = {fault_name(call.args[0].value) for call in calls if len(call.args) == 2}  # type: ignore[attr-defined]
    assert len(faults) >= 10
    assert faults <= set(VOLUME_FAULTS)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the folder contains 2 DICOM series;\nadd a column", "several series in a folder"),
        (SINGLE_SLICE.text, "single slice"),
        ("the file is empty", ""),
    ],
)
def test_volume_fault_kind__of_messages(text: str, kind: str) -> None:
    assert volume_fault_kind(text) == kind


def test_volume_fault_kind__of_real_refusals(tmp_path: Path) -> None:
    write_nifti(tmp_path / "time.nii", np.zeros((4, 4, 4, 3), np.int16))
    write_nifti(tmp_path / "nan.nii", np.full((4, 4, 4), np.nan, np.float32))
    save_series(tmp_path / "two", random_pixels(), SeriesInstanceUID=lambda k: f"1.2.{k % 2}")
    save_series(tmp_path / "lost", random_pixels(), PixelSpacing=None)
    kinds = [volume_fault_kind(volume_refusal(tmp_path / name)) for name in ("time.nii", "nan.nii", "two", "lost")]
    assert kinds == [
        "several volumes in a file", "voxels not finite", "several series in a folder", "no positions"
    ]  # fmt: skip
