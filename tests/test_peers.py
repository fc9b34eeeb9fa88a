"""The comparison with other libraries, as far as it needs none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import medmoco
from benchmarks.peers.films import Task

ROOT = Path(__file__).parents[1]
FILMS = ROOT / "manifests/chest_films"


def _run(*words: object) -> str:
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_peers__a_start_from_imported_weights_is_the_same_network_on_gray_images(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    medmoco.import_weights(tmp_path / "weights.pth", tmp_path / "imported", backbone="test_resnet", mean=0.5, std=0.5)
    task = Task(
        films=[], backbone="test_resnet", size=32, epochs=1, seed=1, workers=0, method="", lr=None,
        init=tmp_path / "imported/encoder.safetensors", gray=[0.5, 0.5], out=tmp_path,
    )  # fmt: skip
    gray = torch.randn(2, 1, 32, 32).expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(task.network().eval()(gray), network(gray), rtol=1e-5, atol=1e-5)
    assert task.mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_peers__medmoco_is_trained_and_scored_like_the_others(tmp_path: Path) -> None:
    _run(
        "benchmarks.peers", "medmoco", "--manifest", FILMS, "--root", FILMS, "--out", tmp_path / "ours",
        "--environments", tmp_path, "--cores", 1, "--minutes", 0.01, "--backbone", "test_resnet", "--size", 32,
        "method.queue_size=512", "data.canvas_size=96",
    )  # fmt: skip
    record = json.loads((tmp_path / "ours/time.json").read_text())
    assert record["images"] == 2 * (900 // 64) * 64  # at least two epochs, however short the time
    _run(
        "benchmarks.peers.score", "--config", tmp_path / "ours/run/config.yaml", "--out", tmp_path / "scores",
        f"ours={tmp_path / 'ours/run'},{tmp_path / 'ours/run'}", "--finetune", "scratch=random",
        "--split", "test", "--draws", 2, "evaluate.bootstrap=100", "finetune.epochs=1", "finetune.warmup_epochs=0",
    )  # fmt: skip
    table = (tmp_path / "scores/table.md").read_text().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table[2:]}
    assert {"ours", "ours, seed 1", "untrained", "pixels", "scratch", "ours minus scratch"} <= rows.keys()
    assert [cell.split()[0] for cell in rows["ours"][2:]] == [cell.strip(" |") for cell in rows["ours, seed 1"][2:]]
    assert rows["ours"][1].startswith(f"{record['images']:,}, ")
    assert all(len(row) == 8 for row in rows.values())
