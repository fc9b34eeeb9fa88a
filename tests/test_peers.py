"""The comparison with other libraries, as far as it needs none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILMS = ROOT / "manifests/chest_films"


def _run(*words: object) -> str:
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_peers__medmoco_is_trained_and_scored_like_the_others(tmp_path: Path) -> None:
    _run(
        "benchmarks.peers", "medmoco", "--manifest", FILMS, "--root", FILMS, "--out", tmp_path / "ours",
        "--environments", tmp_path, "--cores", 1, "--minutes", 0.01, "--backbone", "test_resnet", "--size", 32,
        "method.queue_size=512", "data.canvas_size=96",
    )  # fmt: skip
    record = json.loads((tmp_path / "ours/time.json").read_text())
    assert record["images"] == 2 * (900 // 64) * 64  # at least two epochs, however short the time
    table = _run(
        "benchmarks.peers.score", "--config", tmp_path / "ours/run/config.yaml", "--out", tmp_path / "scores",
        f"ours={tmp_path / 'ours/run'}", "other=random", "evaluate.bootstrap=100",
    )  # fmt: skip
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:]}
    assert {"ours", "untrained", "pixels", "ours minus untrained", "ours minus pixels"} <= rows.keys()
    assert rows["ours"][1].startswith(f"{record['images']:,}, ")
    assert all(len(row) == 8 for row in rows.values())
