from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmoco.utils.files import config_option, free_space, replacing, sha256_of, size_words


def test_sha256_of__known_value(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example
    assert sha256_of(file) == sha256_of(str(file)) == known


def test_free_space__of_a_folder_that_does_not_exist_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=7))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    assert [free_space(Path(place)) for place in ("made", "made/a/b", "c")] == [7, 7, 7]
    assert asked == [tmp_path / "made", tmp_path / "made", tmp_path]


def test_replacing__durable_syncs_the_content_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    for durable in (False, True):
        with replacing(tmp_path / "a.txt", durable=durable) as temporary:
            temporary.write_text("new")
    assert synced == [str(tmp_path / "a.txt.tmp"), str(tmp_path)]


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"shared": True}])
def test_replacing__the_file_changes_at_once_or_not_at_all(tmp_path: Path, options: dict[str, bool]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file, **options) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"

    def half(temporary: Path) -> None:
        temporary.write_text("hal")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), replacing(file, **options) as temporary:
        half(temporary)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "new"


def test_replacing__shared_by_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with replacing(file, shared=True) as one, replacing(file, shared=True) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert file.read_text() == "1"


@pytest.mark.parametrize(
    ("count", "words"), [(4e5, "0 MB"), (8.5e8, "850 MB"), (1.55e9, "1.6 GB"), (2.4e10, "24 GB"), (5e12, "5,000 GB")]
)
def test_size_words__have_two_digits(count: float, words: str) -> None:
    assert size_words(count) == words


def test_config_option__only_for_another_file_than_the_default() -> None:
    assert config_option(Path() / "medmoco.yaml") == []
    assert config_option(Path("a/medmoco.yaml")) == ["--config", "a/medmoco.yaml"]
