from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pydicom
import pytest

from medmoco.data.pack.pack_sources import size_and_hash, size_of
from tests.helpers.volume_packs import REAL, needs_real


def test_size_and_hash__of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert size_and_hash(file) == (3, hashlib.sha256(b"abc").hexdigest())
    assert size_and_hash(file, "1.2") == size_and_hash(file)
    assert size_of(str(file), "1.2") == 3
    assert size_of(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError):
        size_and_hash(tmp_path / "none")


def test_size_and_hash__of_a_folder_are_those_of_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"first")
    lines = [f"{name} {hashlib.sha256(text).hexdigest()}\n" for name, text in (("a", b"first"), ("b", b"two"))]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert size_and_hash(tmp_path) == (8, expected)
    assert size_of(tmp_path) == 8
    (tmp_path / "b").rename(tmp_path / "c")
    assert size_and_hash(tmp_path)[1] != expected


@needs_real
def test_size_and_hash__of_one_of_two_series_ignore_the_other(tmp_path: Path) -> None:
    places = {name: REAL / "mr_series" / name for name in ("HFS", "HFDR")}
    uids, alone = {}, {}
    for name, folder in places.items():
        files = sorted(folder.iterdir())[:3]
        uids[name] = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
        for file in files:
            for target in (tmp_path / name / f"{name}-{file.name}", tmp_path / "both" / f"{name}-{file.name}"):
                target.parent.mkdir(exist_ok=True)
                shutil.copy(file, target)
        alone[name] = size_and_hash(tmp_path / name)
    (tmp_path / "both/notes.txt").write_text("no DICOM")
    for name, uid in uids.items():
        assert size_and_hash(tmp_path / "both", uid) == alone[name]
    assert size_of(tmp_path / "both", uids["HFS"]) is None
