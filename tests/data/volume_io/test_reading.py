"""Reading volumes of any type: dispatch by content, arrays, notices, and missing libraries."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.image_io.intensity import CONSTANT
from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.reading import inspect_volume, read_volume
from medmoco.errors import ImageError, SettingsError
from tests.helpers.mutations import mutated
from tests.helpers.volume_files import random_pixels, save_enhanced, save_series, volume_refusal

VALUES = np.random.default_rng(0).integers(0, 2, (5, 6, 7)).astype(np.uint8)


def test_npy__shape_and_identity(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    volume = read_volume(tmp_path / "a.npy")
    np.testing.assert_array_equal(volume.values, VALUES)
    assert volume.values.dtype == np.float32
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert (volume.spacing, volume.slice_axis, volume.modality) == ((1.0, 1.0, 1.0), 2, "")
    assert len(volume.notices) == 1
    assert "does not state its orientation" in volume.notices[0]
    assert inspect_volume(tmp_path / "a.npy").shape == (5, 6, 7)
    np.save(tmp_path / "b.npy", np.asfortranarray(VALUES)[..., None])
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npy").values, VALUES)


def test_npy__refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for values, words in (
        (VALUES[0], "has 2 axes"),
        (np.stack([VALUES] * 2), "7 volumes"),
        (VALUES[:1], "a single slice"),
        (VALUES.astype(object), "only plain integers"),
        (VALUES.astype(np.complex64), "only plain integers"),
        (np.where(VALUES, np.nan, 0), "not finite"),
    ):
        np.save(path, values, allow_pickle=True)
        assert words in volume_refusal(path)
    np.save(path, VALUES)
    path.write_bytes(path.read_bytes()[:-1])
    assert "ends inside its array" in volume_refusal(path)
    np.save(path, VALUES)
    assert "data.max_frames" in volume_refusal(path, limits=Limits(max_frames=6))
    assert "data.max_bytes" in volume_refusal(path, limits=Limits(max_bytes=209))


def test_reading__constant_volumes_are_noted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 3, 3)))
    assert CONSTANT in read_volume(tmp_path / "a.npy").notices


def test_reading__other_content(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for content, words in ((b"", "empty"), (b"\x89PNG\r\n\x1a\n" + bytes(600), "set data.dimensions to 2")):
        path.write_bytes(content)
        assert words in volume_refusal(path)
    assert "does not exist" in volume_refusal(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    assert "a folder, a pipe or a device" in volume_refusal(tmp_path / "pipe")


@pytest.mark.parametrize(("library", "name"), [("nibabel", "a.npy"), ("SimpleITK", "a.nrrd")])
def test_reading__missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.nrrd").write_text("NRRD0005\ntype: short\ndimension: 3\nsizes: 1 1 1\nencoding: raw\n\n")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SettingsError, match=rf"needs {library}.*pip install medmoco\[volumes\]"):
        read_volume(tmp_path / name)


def test_reading__mutated_files_end_in_voxels_or_our_error(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(VALUES, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(VALUES, np.eye(4)), tmp_path / "a.nii.gz")
    np.save(tmp_path / "a.npy", VALUES)
    save_enhanced(tmp_path / "a.dcm", random_pixels(), [(0, 0, k) for k in range(5)])
    seeds = {name: (tmp_path / name).read_bytes() for name in ("a.nii", "a.nii.gz", "a.npy", "a.dcm")}
    messages: set[str] = set()
    volumes = 0
    for name in seeds:
        for case in range(60):
            path = tmp_path / "mutated"
            path.write_bytes(mutated(seeds, name, case))
            try:
                volume = read_volume(path, limits=Limits(max_bytes=10**6))
            except ImageError as error:
                messages.add(str(error))
            else:
                assert volume.values.ndim == 3
                assert np.isfinite(volume.values).all()
                volumes += 1
    assert volumes > 20
    assert len(messages) > 10
    assert not any("mutated" in message or "4711" in message for message in messages)


def test_reading__mutated_slices(tmp_path: Path) -> None:
    files = save_series(tmp_path / "a", random_pixels())
    seeds = {"slice": files[2].read_bytes()}
    messages = set()
    for case in range(60):
        files[2].write_bytes(mutated(seeds, "slice", case))
        try:
            assert read_volume(tmp_path / "a").values.shape[:2] == (7, 6)
        except ImageError as error:
            messages.add(str(error))
    assert len(messages) > 5
    assert not any("4711" in message for message in messages)
