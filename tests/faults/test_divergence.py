"""Losses that are not finite."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medmoco.data.loading.sampler import StepOrder
from tests.helpers.runs import BATCH, EPOCHS, IMAGES, checkpoints, pretrain, status


def test_divergence__skips_steps_lists_their_rows_and_gives_up(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, "train.lr=1e30", "train.max_skipped=5", "train.checkpoint_every=1")
    assert run.wait() == 5, run.said
    assert "Traceback" not in run.said
    records = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    bad = [record["step"] for record in records]
    assert bad == list(range(bad[0], bad[0] + 5))
    order = StepOrder(0, IMAGES, BATCH, EPOCHS)
    for record in records:
        batch = order.batch(record["step"])
        assert record["rows"] == (batch.samples + 2).tolist()  # row 1 is the header
        assert record["epoch"] == batch.epoch
        assert f"skipped step {record['step']} (" in run.said
    assert f"the last 5 steps, up to step {bad[-1]}, had no finite gradient" in run.said
    assert status(out)["exit_code"] == 5
    for file in checkpoints(out):
        for name, value in torch.load(file, weights_only=True)["model"].items():
            assert value.isfinite().all(), (file.name, name)
