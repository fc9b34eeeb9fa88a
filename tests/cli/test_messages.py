from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medmoco.cli.messages import columns, fitted
from tests.helpers.commands import Call

COLUMNS = """'data.columns={Path: "Image Index", PatientID: "Patient ID"}'"""
LONG = (
    "medmoco: manifest/train.csv: no column 'Path'; did you mean 'Image Index'? Then set "
    f"{COLUMNS} (it must contain each image's path below data.root)"
)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        (
            LONG,
            100,
            [
                "medmoco: manifest/train.csv: no column 'Path'; did you mean 'Image Index'?",
                f"Then set {COLUMNS}",
                "(it must contain each image's path below data.root)",
            ],
        ),
        ("a sentence; and another", 18, ["a sentence;", "and another"]),
        ("one, two, three, four and five", 20, ["one, two, three,", "four and five"]),
        ("if; a clause ends too early", 20, ["if; a clause ends", "too early"]),
        ("short\n  indented, and long enough", 18, ["short", "  indented,", "and long enough"]),
        ("run 'medmoco init FOLDER' or", 14, ["run", "'medmoco init FOLDER'", "or"]),
        ("now set train.lr=0.1 data.where='A == 1'", 20, ["now set", "train.lr=0.1 data.where='A == 1'"]),
        ("the file is /data/a/long/path.csv", 16, ["the file is", "/data/a/long/path.csv"]),
        ("x" * 30, 10, ["x" * 30]),
        ("a line\n\nand one more\n", 0, ["a line", "", "and one more", ""]),
    ],
)
def test_fitted__breaks_lines_but_nothing_to_copy(text: str, width: int, expected: list[str]) -> None:
    assert fitted(text, width).split("\n") == expected


def test_fitted__loses_no_word() -> None:
    for width in range(1, 200):
        assert fitted(LONG, width).split() == LONG.split()


def test_columns__of_a_file_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    with (tmp_path / "file").open("w") as file:
        for stream in (io.StringIO(), file):
            monkeypatch.setattr("sys.stderr", stream)
            assert columns() == 0


def test_errors__are_whole_lines_in_a_file(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["config", "--config", "configs/cxr.yaml", "epochs=5"]
    whole = call(*words, code=2).stderr
    assert max(map(len, whole.splitlines())) > 100
    monkeypatch.setattr("medmoco.cli.program.columns", lambda: 80)
    broken = call(*words, code=2).stderr
    assert max(map(len, broken.splitlines())) <= 80
    assert broken.split() == whole.split()


def test_errors__fit_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = f"stty cols 60 && {shlex.quote(sys.executable)} -m medmoco config"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stdin=theirs, stderr=theirs, check=False, timeout=60)
    assert done.returncode == 2
    os.close(theirs)
    lines = os.read(ours, 4000).decode().splitlines()
    os.close(ours)
    assert lines[0] == "medmoco: there is no medmoco.yaml in the working folder:"
    assert max(map(len, lines)) <= 60
