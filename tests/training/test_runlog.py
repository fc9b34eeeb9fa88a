from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medmoco.training.runlog import RunLog, write_json

VALUES = {"loss": 1.25, "chance": 7.5, "accuracy": 0.5, "images_per_second": 100.0, "waiting": 0.01}


def test_record__goes_to_file_tensorboard_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, steps=50, start_step=0) as log:
        log.record(10, VALUES, seconds_left=3661.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 10, **VALUES}
    line = "step 10/50: loss 1.250 (chance 7.500), accuracy 50%, 100 images/s, 1% waiting, 1:01:01 left"
    assert line in capsys.readouterr().err
    assert line in (tmp_path / "log.txt").read_text()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.25)]


def test_record__shows_scores_of_validation_without_those_of_each_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, steps=50, start_step=0) as log:
        log.record(10, {"loss": 0.5, "val_auroc": 0.75, "val_auroc/A": 0.7})
    assert "step 10/50: loss 0.500, val_auroc 0.750\n" in capsys.readouterr().err


def test_record__not_a_number_becomes_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, steps=50, start_step=0) as log:
        log.record(10, {"knn_auroc/A": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 10, "knn_auroc/A": None}


def test_run_log__resuming_forgets_later_records_and_a_torn_line(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4')
    with RunLog(tmp_path, steps=50, start_step=20) as log:
        log.record(25, {"loss": 2.0, "chance": 3.0})
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 25]


def test_warn__says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, steps=1, start_step=0) as log:
        log.warn("[bold] is not markup")
    assert "warning: [bold] is not markup" in capsys.readouterr().err


def test_remark__is_said_once_for_each_kind_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, steps=1, start_step=0) as log:
        for row in (4, 9, 11):
            log.remark(f"train.csv row {row}: constant image")
        log.remark("train.csv row 5: colour reduced to luma")
    said = capsys.readouterr().err
    assert "train.csv row 4: constant image" in said
    assert "row 9" not in said
    assert "2 more images: constant image" in said
    assert said.count("colour") == 1


def test_write_json__is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    write_json(tmp_path / "a.json", {"x": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
