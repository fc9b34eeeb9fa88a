"""One folder with phantoms, settings, a run and its results, in which the examples of the docstrings run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import medmoco

CONFIG = """\
out: runs/phantoms
data: {manifest: phantoms, root: "phantoms/{split}", labels: [Opacity, Interstitial], canvas_size: 64, workers: 0}
views: {size: 32}
model: {backbone: test_resnet}
method: {queue_size: 16, embedding_dim: 16, batch_norm_splits: 2}
train: {epochs: 2, global_batch_size: 8, warmup_epochs: 0, knn_every: 2, device: cpu}
evaluate: {bootstrap: 100, fractions: [0.5, 1.0]}
finetune: {epochs: 1, global_batch_size: 8, warmup_epochs: 0}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with config.yaml, phantoms/, runs/phantoms with evaluation/ and curve/, and export/."""
    folder = tmp_path_factory.mktemp("workspace")
    before = Path.cwd()
    os.chdir(folder)
    try:
        medmoco.phantom("phantoms", patients=30, image_size=64)
        Path("config.yaml").write_text(CONFIG)
        run = medmoco.pretrain("config.yaml", progress=False)
        medmoco.evaluate("config.yaml", run, "runs/phantoms/evaluation", test=True)
        medmoco.curve("config.yaml", run, "runs/phantoms/curve", draws=1)
        medmoco.export(run, "export")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def workspace(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder, which is the working folder meanwhile; tests write to names of their own."""
    monkeypatch.chdir(made)
    return made
