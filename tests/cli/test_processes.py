from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_pretrain__a_signal_to_the_whole_process_group_saves_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As Ctrl-C on a terminal and a cluster's end of job do: data workers get the signal too."""
    rows = ["Path"]
    for row in range(16):
        pixels = np.random.default_rng(row).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    out = tmp_path / "run"
    overrides = [
        f"out={out}", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}", "data.workers=2",
        "data.canvas_size=32", "views.size=32", "model.backbone=test_resnet", "method.queue_size=8",
        "method.batch_norm_splits=1", "train.global_batch_size=4", "train.epochs=100000", "train.log_every=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "medmoco.cli", "pretrain", "--config", "configs/demo.yaml", *overrides]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "everything is saved" in said
    assert "Resume with: medmoco pretrain --config configs/demo.yaml" in said
    assert "Traceback" not in said
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert len(list((out / "checkpoints").glob("*.pt"))) == 1
