from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.utils.files import sha256_of, sync_folder


def test_sha256_of__known_value(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example
    assert sha256_of(file) == sha256_of(str(file)) == known


def test_sync_folder__of_one_that_is_there(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")
