from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medmoco import config
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.quarantine import Quarantine, Replacement
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import DataError
from medmoco.training.distributed import ALONE
from medmoco.training.engine import TrainState
from medmoco.training.runlog import RunLog
from medmoco.training.skipped_steps import SkippedSteps


def make_skipped(folder: Path, log: RunLog, *, budget: int = 2, scaling: bool = False) -> SkippedSteps:
    (folder / "train.csv").write_text("\n".join(["Path", *(f"{n}.png" for n in range(8))]))
    settings = config.load(None, ["out=run", f"data.manifest={folder}", "data.root=r"])
    split, model = load_manifest(settings.data, ("train",))["train"], nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaling)
    state = TrainState(model, torch.optim.SGD(model.parameters(), 1.0), scaler)
    return SkippedSteps(StepOrder(0, 8, 4, 2), split, state, log, ALONE, Quarantine(folder, budget))


def batch_with(*bad: tuple[int, str]) -> Batch:
    replaced = tuple(Replacement(0, row - 2, row - 2, ((row, reason),)) for row, reason in bad)
    return Batch([], torch.arange(4), 0, 0, replaced=replaced)


def test_skipped__names_the_rows_of_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, steps=4, start_step=0) as log:
        skipped = make_skipped(tmp_path, log)
        skipped.list_skipped(2, 1, [0])
        make_skipped(tmp_path, log, scaling=True).list_skipped(3, 1, [])  # fp16 is finding its scale
    records = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    samples = skipped.order.batch(2).samples
    assert [(record["step"], record["rows"]) for record in records] == [(2, (samples + 2).tolist())]
    assert "skipped step 2 (1 so far): its loss is not finite" in capsys.readouterr().err


def test_replaced__lists_each_row_once_until_the_budget_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, steps=4, start_step=0) as log:
        skipped = make_skipped(tmp_path, log)
        for batch in (batch_with((5, "torn"), (3, "empty")), batch_with((5, "torn"))):
            skipped.list_replaced(skipped.replacements(batch))
        with pytest.raises(DataError, match=r"3 images of train\.csv cannot be used"):
            skipped.list_replaced(skipped.replacements(batch_with((9, "torn"))))
        skipped.log_total()
        make_skipped(tmp_path, log).log_earlier()
    with (tmp_path / "quarantine.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["row", "reason"], ["3", "empty"], ["5", "torn"], ["9", "torn"]]
    said = capsys.readouterr().err
    assert said.count("row 5: left out") == 1
    assert "3 images of train could not be used" in said
    assert "3 images of train are in quarantine from before" in said
    assert np.array_equal(sorted(skipped.quarantine.rows()), [3, 5, 9])
