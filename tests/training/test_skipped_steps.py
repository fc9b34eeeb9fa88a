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
from medmoco.training.skipped_steps import Mishaps


def make_mishaps(folder: Path, log: RunLog, *, budget: int = 2, scaling: bool = False) -> Mishaps:
    (folder / "train.csv").write_text("\n".join(["Path", *(f"{n}.png" for n in range(8))]))
    settings = config.load(None, ["out=run", f"data.manifest={folder}", "data.root=r"])
    split, model = load_manifest(settings.data, ("train",))["train"], nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaling)
    state = TrainState(model, torch.optim.SGD(model.parameters(), 1.0), scaler)
    return Mishaps(StepOrder(0, 8, 4, 2), split, state, log, ALONE, Quarantine(folder, budget))


def batch_with(*bad: tuple[int, str]) -> Batch:
    replaced = tuple(Replacement(0, row - 2, row - 2, ((row, reason),)) for row, reason in bad)
    return Batch([], torch.arange(4), 0, 0, replaced=replaced)


def test_skipped__names_the_rows_of_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, steps=4, start_step=0) as log:
        mishaps = make_mishaps(tmp_path, log)
        mishaps.skipped(2, 1, [0])
        make_mishaps(tmp_path, log, scaling=True).skipped(3, 1, [])  # fp16 that finds its scale is no mishap
    records = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    samples = mishaps.order.batch(2).samples
    assert [(record["step"], record["rows"]) for record in records] == [(2, (samples + 2).tolist())]
    assert "step 2 is skipped, the 1. so far: its loss is not finite" in capsys.readouterr().err


def test_replaced__lists_each_row_once_until_the_budget_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, steps=4, start_step=0) as log:
        mishaps = make_mishaps(tmp_path, log)
        for batch in (batch_with((5, "torn"), (3, "empty")), batch_with((5, "torn"))):
            mishaps.replaced(mishaps.replacements(batch))
        with pytest.raises(DataError, match=r"3 images of train\.csv cannot be used"):
            mishaps.replaced(mishaps.replacements(batch_with((9, "torn"))))
        mishaps.say_what_came()
        make_mishaps(tmp_path, log).say_what_is_known()
    with (tmp_path / "quarantine.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["row", "reason"], ["3", "empty"], ["5", "torn"], ["9", "torn"]]
    said = capsys.readouterr().err
    assert said.count("row 5: left out") == 1
    assert "3 images of train could not be used" in said
    assert "3 images of train are in quarantine from before" in said
    assert np.array_equal(sorted(mishaps.quarantine.rows()), [3, 5, 9])
