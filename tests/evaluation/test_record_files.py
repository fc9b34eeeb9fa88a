"""Records are read as they were written, whatever their version, unless it is newer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medmoco.errors import CheckpointError
from medmoco.evaluation.record_files import read_named_records, read_records, to_frame, write_records
from medmoco.evaluation.records import (
    VERSION,
    ExternalScore,
    Leakage,
    Overlap,
    Score,
    SideScore,
)


def score(encoder: str = "mine", **more: Any) -> Score:
    key = {"label": "Mass", "split": "test", "method": "linear", "encoder": encoder}
    numbers = {"auroc": 1 / 3, "auroc_low": 0.1, "auroc_high": None, "average_precision": 0.5}
    return Score.model_validate({**key, **numbers, "n": 9, "n_positive": 3, "n_patients": 8, **more})


def test_records__are_read_as_they_were_written(tmp_path: Path) -> None:
    leakage = Leakage(pretraining=None, train=Overlap(patients=3, images=0))
    written = [score(primary=True, leakage=leakage, strength=(0.1, 10.0)), score("pixels", primary=False)]
    write_records(tmp_path / "scores.json", written)
    assert list(read_records(tmp_path / "scores.json", Score)) == written
    first, second = json.loads((tmp_path / "scores.json").read_text())
    assert first["version"] == second["version"] == VERSION
    assert first["auroc"] == 1 / 3
    assert first["leakage"] == {"pretraining": None, "train": {"patients": 3, "images": 0}}
    assert "leakage" not in second  # a field that does not apply is left out
    assert second["auroc_high"] is None  # and one that is undefined is not


def test_named_records__are_read_as_they_were_written(tmp_path: Path) -> None:
    side = SideScore(auroc=0.8, low=0.7, high=0.9, n=7, n_positive=3, n_patients=6)
    written = {"Mass": ExternalScore(internal=side, external=side, drop=0.0, drop_low=None, drop_high=None)}
    write_records(tmp_path / "external.json", written)
    assert read_named_records(tmp_path / "external.json", ExternalScore) == written


def test_read_records__files_without_a_version_still_load(tmp_path: Path) -> None:
    old = score().model_dump(exclude_unset=True, exclude={"version"})
    (tmp_path / "scores.json").write_text(json.dumps([old]))
    (found,) = read_records(tmp_path / "scores.json", Score)
    assert found == score()
    assert found.primary is None


def test_read_records__a_newer_version_is_refused_whatever_its_fields(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps([{"version": VERSION + 1, "area": 0.9}]))
    with pytest.raises(CheckpointError, match=f"written by a newer medmoco: its records have version {VERSION + 1}"):
        read_records(tmp_path / "scores.json", Score)


def test_read_records__a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"scores\.json cannot be read: No such file"):
        read_records(tmp_path / "scores.json", Score)


def test_to_frame__a_row_for_each_record_and_flat_columns() -> None:
    leakage = Leakage(pretraining=None, train=Overlap(patients=3, images=0))
    frame = to_frame([score(leakage=leakage), score("pixels", leakage=leakage)])
    assert list(frame.columns[:4]) == ["label", "split", "method", "encoder"]
    assert frame["leakage.train.patients"].tolist() == [3, 3]
    assert "version" not in frame
