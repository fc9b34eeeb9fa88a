from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from medmoco import config
from medmoco.evaluation.leakage.ledger import LEDGER, read_ledger
from medmoco.evaluation.scoring.trained import paired_names, record_test

NAMES = {"random": "from scratch"}


@pytest.mark.parametrize(
    ("kind", "other", "expected"),
    [
        ("run", "random", ("run", "from scratch")),
        ("random", "run", ("from scratch", "run")),
        ("run", "run", ("run", "other")),
        ("random", "random", ("from scratch", "other")),
        ("file", "run", ("file", "run")),
    ],
)
def test_paired_names__differ(kind: str, other: str, expected: tuple[str, str]) -> None:
    assert paired_names(kind, other, NAMES) == expected


def test_record_test__records_the_metric_of_the_primary_encoder_on_test(tmp_path: Path) -> None:
    settings = config.load(None, [f"out={tmp_path}", "data.manifest=m", "data.root=r"])

    class Rows(list[int]):
        sha256, label_names = "x", ()

    def made(**changes: object) -> SimpleNamespace:
        usual = {"split": "test", "label": "Lung", "metric": "dice", "encoder": "run", "primary": True, "value": 0.9}
        return SimpleNamespace(**(usual | changes))

    scores = [
        made(), made(label="Heart", value=None), made(label="macro", value=0.8), made(split="val", value=0.1),
        made(metric="hd95", value=3.0), made(encoder="from scratch", primary=False, value=0.2),
    ]  # fmt: skip
    rows = Rows([1, 2, 3])
    note = record_test("segment", settings, "random", rows, scores, "dice")  # type: ignore[arg-type]
    assert note.startswith("test evaluation 1, recorded in ledger.jsonl")
    (entry,) = read_ledger(tmp_path / LEDGER)
    assert (entry.command, entry.rows, entry.encoders) == ("segment", 3, ("run",))
    assert (entry.dice, entry.auroc) == ({"Lung": 0.9, "Heart": None}, {})


def test_record_test__without_test_nothing_is_recorded(tmp_path: Path) -> None:
    settings = config.load(None, [f"out={tmp_path}", "data.manifest=m", "data.root=r"])
    assert "test was not evaluated" in record_test("segment", settings, "random", None, [], "dice")
    assert not (tmp_path / LEDGER).exists()
