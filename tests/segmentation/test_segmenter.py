from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import medmoco
from medmoco.errors import CheckpointError
from medmoco.segmentation.annotated.annotations import load_annotations
from medmoco.segmentation.learning import segment_cases
from medmoco.segmentation.segment import segment, settings_of_run
from medmoco.segmentation.segmenter import FACTS, SEGMENTER, WEIGHTS, load_segmenter
from tests.helpers.blobs import SECRET, SPACING, make_settings, write_blobs


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("run")
    manifest = write_blobs(folder / "data", request.param)
    segment(
        make_settings(manifest, request.param, "segmentation.epochs=4", "segmentation.lr=3e-3"),
        "random",
        folder / "run",
    )
    return folder, request.param


def test_load_segmenter__predicts_what_the_run_scored(run: tuple[Path, int]) -> None:
    folder, dimensions = run
    segmenter = medmoco.load_segmenter(folder / "run")
    settings = settings_of_run(make_settings(folder / "data", dimensions), folder / "run")
    val = load_annotations(settings, "random", False).splits["val"]
    predicted = segment_cases(segmenter.module, val.cases, segmenter.settings, torch.device("cpu"))
    for file, numbers, case in zip(val.rows.split.files, predicted, val.cases, strict=True):
        found = segmenter.segment(str(file))
        assert found.numbers.shape == case.grid.shape
        assert (found.affine is None) == (dimensions == 2)
        np.testing.assert_array_equal(found.numbers, numbers)
    rows = [line.split(",") for line in (folder / "run/cases.csv").read_text().splitlines()[1:]]
    scored = {(int(row[1]), row[2]): float(row[6]) for row in rows if row[0] == "val" and row[6]}
    unit = 1 if dimensions == 2 else float(np.prod(SPACING)) / 1000
    for row, file in enumerate(val.rows.split.files, 2):
        large = segmenter.segment(str(file)).numbers == 1
        large[tuple(slice(-2, None) for _ in large.shape)] = False  # ignored by the masks
        assert scored[row, "large"] == pytest.approx(large.sum() * unit)


def test_load_segmenter__says_what_it_is_and_keeps_no_names(run: tuple[Path, int]) -> None:
    folder, dimensions = run
    segmenter = load_segmenter(folder / "run" / SEGMENTER)
    assert "large, small in" in repr(segmenter)
    facts = json.loads((folder / "run" / SEGMENTER / FACTS).read_text())
    assert facts["classes"] == {"large": 10, "small": 20}
    assert facts["data"]["dimensions"] == dimensions
    for file in (folder / "run" / SEGMENTER).iterdir():
        assert SECRET.encode() not in file.read_bytes()
        assert str(folder).encode() not in file.read_bytes()


def test_load_segmenter__refuses_damage(run: tuple[Path, int], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run[0] / "run" / SEGMENTER, copy)
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS).write_bytes(weights)
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        load_segmenter(copy)
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"size": "large"}))
    with pytest.raises(CheckpointError, match=r"is damaged or of another version of medmoco \(size: "):
        load_segmenter(copy)
    (copy / FACTS).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_segmenter(copy)
    with pytest.raises(CheckpointError, match="is not a segmenter folder"):
        load_segmenter(tmp_path)


def test_load_segmenter__classes_that_do_not_fit_the_weights_are_refused(run: tuple[Path, int], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run[0] / "run" / SEGMENTER, copy)
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"classes": {"a": 1, "b": 2, "c": 3}}))
    with pytest.raises(CheckpointError, match=r"does not match a .* with 3 classes"):
        load_segmenter(copy)
