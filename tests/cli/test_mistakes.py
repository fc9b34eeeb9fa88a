"""Every message in docs/mistakes.md is what medmoco says to the command above it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.commands import Call

PAGE = (Path(__file__).parents[2] / "docs/mistakes.md").read_text(encoding="utf-8")
MISTAKES = dict(re.findall(r"^## ([^\n]+)\n+```text\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
WIDTH = 100
"""Columns of the terminal whose messages the page shows."""
SETTINGS = """\
out: runs/films
data: {manifest: manifest, root: films, labels: [Pneumonia], canvas_size: 48, workers: 0}
views: {size: 32}
model: {backbone: test_resnet}
method: {queue_size: 8}
train: {epochs: 1, global_batch_size: 4, device: cpu, knn_every: 0}
"""
SIZES = {"train": 20, "val": 8, "test": 8}


def _write_films(folder: Path) -> None:
    """Write films of two per patient, a manifest, and medmoco.yaml."""
    (folder / "films").mkdir()
    (folder / "manifest").mkdir()
    generator = np.random.default_rng(0)
    for split, size in SIZES.items():
        rows = ["Path,PatientID,Pneumonia"]
        for number in range(size):
            pixels = generator.integers(0, 256, (48, 40), dtype=np.uint8)
            name = f"{split}{number:02}.png"
            Image.fromarray(pixels).save(folder / "films" / name)
            rows.append(f"{name},{split}-{number // 2},{number // 2 % 2}")
        (folder / "manifest" / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (folder / "medmoco.yaml").write_text(SETTINGS)


def _edit(old: str, new: str, files: str = "manifest/*.csv") -> Callable[[Path, Call], None]:
    """Return what replaces a text in files; the text must be in each of them."""

    def edit(folder: Path, _: Call) -> None:
        for file in sorted(folder.glob(files)):
            text = file.read_text()
            assert old in text, file
            file.write_text(text.replace(old, new))

    return edit


def _remove(name: str) -> Callable[[Path, Call], None]:
    return lambda folder, _: (folder / name).unlink()


def _text_labels(folder: Path, call: Call) -> None:
    _edit(",0\n", ",no\n")(folder, call)
    _edit(",1\n", ",yes\n")(folder, call)


def _latin_1(folder: Path, _: Call) -> None:
    file = folder / "manifest/train.csv"
    file.write_bytes(file.read_text().replace("PatientID", "PatientID,Befund Röntgen").encode("latin-1"))


def _share_a_patient(folder: Path, _: Call) -> None:
    file = folder / "manifest/test.csv"
    file.write_text(file.read_text().replace("test-0", "train-0"))


def _cut_a_film(folder: Path, _: Call) -> None:
    film = folder / "films/train03.png"
    film.write_bytes(film.read_bytes()[:300])


def _train(_: Path, call: Call) -> None:
    call("pretrain")


SETUPS: dict[str, Callable[[Path, Call], None]] = {
    "No settings": _remove("medmoco.yaml"),
    "No list of images": lambda folder, _: shutil.rmtree(folder / "manifest"),
    "A Path that is absolute": _edit("\ntrain", "\n/data/films/train", "manifest/train.csv"),
    "Paths from Windows": _edit("\ntrain", "\nC:\\films\\train", "manifest/train.csv"),
    "Columns under other names": _edit("Path,PatientID", "Image Index,Patient ID"),
    "Patients under another name": _edit("PatientID", "Patient ID"),
    "Labels as text": _text_labels,
    "A table that is not UTF-8": _latin_1,
    "No validation split": _remove("manifest/val.csv"),
    "Few images with the default batch and queue": lambda folder, _: (folder / "medmoco.yaml").write_text(
        SETTINGS.replace("method: {queue_size: 8}\n", "").replace("global_batch_size: 4, ", "")
    ),
    "A run in the folder": _train,
    "Resuming with other settings": _train,
    "A damaged image": _cut_a_film,
    "A patient in training and test": _share_a_patient,
}
"""Title -> what makes the mistake, if it is not in the command."""

CODES = {
    "An encoder that does not exist": 4,
    **dict.fromkeys(
        (
            "No settings",
            "A misspelt setting",
            "A setting without its group",
            "A backbone that does not exist",
            "Few images with the default batch and queue",
            "A GPU that is not there",
            "A run in the folder",
            "Resuming with other settings",
        ),
        2,
    ),
}
"""Title -> exit code; 3 for all others, which are about the data."""


def test_page__lists_at_least_fifteen_mistakes_and_each_setup() -> None:
    assert len(MISTAKES) >= 15
    assert list(MISTAKES) == re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    assert SETUPS.keys() <= MISTAKES.keys()
    assert max(len(line) for text in MISTAKES.values() for line in text.splitlines()) <= WIDTH


@pytest.mark.parametrize("title", MISTAKES)
def test_mistake__is_answered_as_the_page_says(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    if "cuda" in MISTAKES[title] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    first, *message = MISTAKES[title].splitlines()
    assert first.startswith("$ medmoco ")
    assert message[0].startswith("medmoco: ")
    _write_films(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medmoco.cli.program.columns", lambda: WIDTH)
    if title in SETUPS:
        SETUPS[title](tmp_path, call)
    code = CODES.get(title, 3)
    said = call(*shlex.split(first)[2:], code=code).stderr
    assert said.endswith("\n".join(message) + "\n"), said
    assert "Traceback" not in said
