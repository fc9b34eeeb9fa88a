from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.config import RunSettings, load
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.data.quality.audit import audit
from medmoco.data.quality.shapes import elongation, training_elongation


def make_settings(folder: Path, *overrides: str) -> RunSettings:
    base = [f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder}", "data.workers=0"]
    return load(None, [*base, "data.canvas_size=128", "views.size=96", *overrides])


def write(folder: Path, sizes: list[tuple[int, int]]) -> None:
    generator = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        Image.fromarray(generator.integers(256, size=size, dtype=np.uint8)).save(folder / f"{number}.png")
    lines = [f"{number}.png" for number in range(len(sizes))]
    (folder / "train.csv").write_text("\n".join(["Path", *lines]) + "\n")


@pytest.mark.parametrize(
    ("size", "overrides", "expected"),
    [
        ((573, 1408), (), "ratio of their sides is 2.5: of the shorter side, a canvas of 128 keeps 52 pixels"),
        ((573, 1408), (), "views of 96 x 96 enlarge; set data.canvas_size=240"),
        ((1408, 573), ("data.canvas_size=240",), ""),
        ((1408, 573), ("data.canvas_size=240", "evaluate.size=128"), "enlarge; set data.canvas_size=320"),
        ((1000, 640), ("views.size=128",), ""),
    ],
)
def test_elongation__names_a_sufficient_canvas(
    tmp_path: Path, size: tuple[int, int], overrides: tuple[str, ...], expected: str
) -> None:
    found = elongation(np.array([size] * 3 + [(100, 100)]), make_settings(tmp_path, *overrides))
    assert (expected in found) if expected else not found


def test_elongation__of_few_images_or_none_is_no_warning(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    assert not elongation(np.array([(100, 400)] * 2 + [(100, 100)] * 3), settings)
    assert not elongation(np.empty((0, 2), int), settings)


def test_training_elongation__reads_headers_or_the_pack(tmp_path: Path) -> None:
    write(tmp_path, [(60, 150)] * 3 + [(60, 60)])
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])  # the header is left
    (tmp_path / "2.png").write_text("not an image")
    settings = make_settings(tmp_path)
    split = load_manifest(settings.data, ("train",))["train"]
    assert "ratio of their sides is 2.5" in training_elongation(split, settings)
    write(tmp_path, [(60, 150)] * 3 + [(60, 60)])
    make_pack(settings.data, tmp_path / "pack", print)
    packed = make_settings(tmp_path, f"data.pack={tmp_path / 'pack'}")
    assert "ratio of their sides is 2.5" in training_elongation(split, packed)
    (tmp_path / "train.csv").write_text("Path\n3.png\n")
    assert not training_elongation(load_manifest(settings.data, ("train",))["train"], settings)


def test_audit__warns_of_elongated_images(tmp_path: Path) -> None:
    write(tmp_path, [(60, 150)] * 3 + [(60, 60)])
    found = audit(make_settings(tmp_path), tmp_path / "report")
    (elongated,) = [finding for finding in found.findings if finding.kind == "elongated"]
    assert elongated.rows.tolist() == [0, 1, 2]
    assert "set data.canvas_size=240" in found.text
    assert max(map(len, found.text.splitlines())) < 120
