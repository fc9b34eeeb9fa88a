"""The ledger of test evaluations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medmoco.config import RunSettings, load
from medmoco.errors import CheckpointError
from medmoco.evaluation.leakage.ledger import ledger_of, read_ledger, record_test_evaluation


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return load(None, [f"out={tmp_path}", f"data.manifest={tmp_path}", f"data.root={tmp_path}"])


class Rows(SimpleNamespace):
    sha256 = "ab" * 32
    label_names = ("Pneumonia",)

    def __len__(self) -> int:
        return 7


def test_record_test_evaluation__counts_and_keeps_the_scores(tmp_path: Path, settings: RunSettings) -> None:
    test: Any = Rows()
    assert ledger_of(str(tmp_path), tmp_path / "out") == tmp_path / "out" / "ledger.jsonl"  # an export stays whole
    (tmp_path / "config.yaml").touch()
    ledger = ledger_of(str(tmp_path), tmp_path / "out")
    assert ledger == tmp_path / "ledger.jsonl"
    assert ledger_of(str(tmp_path), None) == ledger
    assert read_ledger(ledger) == []
    assert record_test_evaluation(ledger, "evaluate", test, settings, ["run"], auroc={"Pneumonia": 0.9}) == 1
    assert record_test_evaluation(ledger, "curve", test, settings, ["run", "pixels"], auroc={"Pneumonia": None}) == 2
    first, second = read_ledger(ledger)
    assert first.r2 == {}
    assert (first.command, first.rows, first.auroc) == ("evaluate", 7, {"Pneumonia": 0.9})
    assert second.encoders == ("run", "pixels")
    assert first.time <= second.time
    assert str(tmp_path) not in ledger.read_text()


def test_ledger_of__without_a_run_it_lies_beside_the_results(tmp_path: Path) -> None:
    assert ledger_of("random", tmp_path) == tmp_path / "ledger.jsonl"
    assert ledger_of("random", None) is None


def test_ledger_of__a_run_has_one_whichever_checkpoint_is_scored(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert ledger_of(str(tmp_path), None) == ledger_of(str(tmp_path / "best"), None) == tmp_path / "ledger.jsonl"
    assert ledger_of(str(tmp_path / "other"), None) is None


def test_read_ledger__a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"command": "evaluate"}\n{"comm\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_record_test_evaluation__keeps_r2_of_numeric_targets(tmp_path: Path, settings: RunSettings) -> None:
    test: Any = Rows()
    record_test_evaluation(tmp_path / "ledger.jsonl", "evaluate", test, settings, ["run"], r2={"Age": -0.2})
    (entry,) = read_ledger(tmp_path / "ledger.jsonl")
    assert (entry.auroc, entry.r2) == ({}, {"Age": -0.2})
