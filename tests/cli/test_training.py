from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Call, refused


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["pretrain", "--config", "configs/cxr.yaml", "data.manifest=absent"], 3, "absent does not exist"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)


SEARCH = """
data: {{manifest: {data}, root: '{data}/{{split}}', labels: [Opacity], canvas_size: 40, workers: 1}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 16}}
train: {{epochs: 100, global_batch_size: 8, lr: 0.03, precision: fp32, device: cpu, log_every: 1}}
evaluate: {{bootstrap: 100}}
tune: {{trials: 7, epochs: 8, space: {{train.lr: {{low: 0.001, high: 0.3, log: true}}}}}}
"""


@pytest.mark.slow
def test_tune__a_signal_stops_the_search_and_resume_ends_it_as_if_nothing_had_been(call: Call, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "settings.yaml"
    call("phantom", "--out", data, "--patients", 24, "--image-size", 64)
    file.write_text(f"out: {tmp_path / 'run'}\n{SEARCH.format(data=data)}")
    printed = call("tune", "--config", file, "--out", tmp_path / "whole").stdout
    assert "The winner is trial" in printed or "Nothing scored better" in printed
    metrics = tmp_path / "run-tune" / "trial-005" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "medmoco.cli", "tune", "--config", file],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"Go on with: medmoco tune --config {file} --resume" in said
    call("tune", "--config", file, "--resume")

    def found(out: Path) -> Any:
        record = json.loads((out / "tune.json").read_text())
        return record["winner"], [{**trial, "seconds": 0} for trial in record["trials"]]

    assert found(tmp_path / "run-tune") == found(tmp_path / "whole")
    best = tmp_path / "run-tune" / "best.yaml"
    call("pretrain", "--config", best, "train.epochs=1")
    assert (tmp_path / "run" / "checkpoints").is_dir()
