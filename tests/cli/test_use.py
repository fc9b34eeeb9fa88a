from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import Call, refused


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["export", "--run", "absent", "--out", "x"], 4, "not a run folder"),
        (["predict", "--config", "configs/cxr.yaml", "--classifier", "x", "--out", "y"], 4, "not a classifier folder"),
        (["predict", "--classifier", "x", "--out", "y"], 2, "give --images with files or folders, or --config"),
        (["predict", "--images", "a.png", "--classifier", "x", "--out", "y"], 4, "not a classifier folder"),
        (["import", "w.pth", "--out", "x"], 4, "weights file w.pth does not exist"),
        (["import", "w.pth", "--out", "x", "--which", "teacher"], 2, "give query, or key for its moving average"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)


def test_predict__files_from_a_shell_and_overrides_are_told_apart(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def predict_files(images: list[Path], folder: Path, out: Path, **options: Any) -> tuple[int, int]:
        given.update(options, images=images)
        return len(images), 1

    monkeypatch.setattr("medmoco.evaluation.supervised.predict.predict_files", predict_files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.png").touch()
    words = ["--images", "a.png", "a=b.png", "c d.png", "--classifier", "x", "--out", "y", "data.workers=1"]
    found = call("predict", *words, code=3)
    assert given["images"] == [Path("a.png"), Path("a=b.png"), Path("c d.png")]
    assert given["overrides"] == ["data.workers=1"]
    assert given["settings"] is None
    assert "3 files were written to y, with their names as given" in found.stdout
    assert "1 of 3 files cannot be read" in found.stderr


def test_predict__reads_the_settings_file_of_the_working_folder(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", "--classifier", "x", "--out", "y"]
    assert "there is no medmoco.yaml in the working folder" in call(*words, code=2).stderr
    Path("medmoco.yaml").write_text("out: run\ndata: {manifest: m, root: .}\n")
    assert "not a classifier folder" in call(*words, code=4).stderr
