from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.dataset_files import go, labels, put


def test_prepare__classes_alone(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {f"{name}/{number}.png": "" for name in ("cat", "dog") for number in range(40)})
    put(source, {"stray.png": "", "cat/notes.txt": "", "cat/deeper/x.jpg": ""})
    files = go("image_folder", source)
    assert len(files["all"]) == 81
    assert labels(files["all"], "cat/deeper/x.jpg", ["Class", "cat", "dog"]) == ["cat", "1", "0"]
    assert [(files["test"]["Class"] == name).sum() for name in ("cat", "dog")] == [pytest.approx(8, abs=1)] * 2
    assert files["left_out"]["Path"].tolist() == ["stray.png"]
    assert "1 files without the suffix of an image" in files["page"]


def test_prepare__splits_and_many_classes(tmp_path: Path) -> None:
    names = {
        f"{split}/n{number:03d}/{image}.JPEG": ""
        for split in ("train", "val")
        for number in range(101)
        for image in "ab"
    }
    files = go("image_folder", put(tmp_path / "source", names))
    assert len(files["val"]) == 202
    assert len(files["test"]) == pytest.approx(0.2 * 202, abs=1)
    assert set(files["val"].columns) == {"Path", "Class"}
    assert "101 classes are too many" in files["page"]
