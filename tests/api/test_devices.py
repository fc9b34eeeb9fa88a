"""What a GPU computes agrees with the CPU; without one, the tests compare the CPU with itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medmoco

DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
TF32 = 2e-3
"""Relative rounding of convolutions on a GPU, whose default has 10 bits after the point."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return str(request.param)


def settings(out: str, device: str, **train: Any) -> dict[str, Any]:
    return {
        "out": out,
        "data": {"manifest": "phantoms", "root": "phantoms/{split}", "labels": ["Opacity"], "canvas_size": 64},
        "views": {"size": 32},
        "model": {"backbone": "test_resnet"},
        "method": {"queue_size": 16, "embedding_dim": 16, "batch_norm_splits": 2},
        "train": {
            "epochs": 2, "global_batch_size": 8, "warmup_epochs": 0, "log_every": 1, "device": device, **train
        },
    }  # fmt: skip


@pytest.mark.usefixtures("workspace")
def test_embed__features_agree(device: str) -> None:
    encoder = medmoco.load_encoder("export")
    expected = encoder.embed("phantoms/test", device="cpu")
    found = encoder.embed("phantoms/test", device=device)
    assert np.abs(found - expected).max() <= TF32 * np.abs(expected).max()


@pytest.mark.usefixtures("workspace")
def test_predict__probabilities_agree(device: str) -> None:
    classifier = medmoco.load_classifier("runs/phantoms/evaluation/classifier")
    expected = classifier.predict("phantoms/test", device="cpu")
    found = classifier.predict("phantoms/test", device=device)
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= 10 * TF32


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pretrain__first_loss_agrees_and_the_run_resumes(device: str, precision: str) -> None:
    losses = {}
    for name, kind, digits in (("reference", "cpu", "fp32"), ("compared", device, precision)):
        out = f"runs/{name}-{device}-{precision}"
        run = medmoco.pretrain(settings(out, kind, precision=digits), progress=False)
        losses[name] = run.metrics["loss"].dropna().to_numpy()
        assert np.isfinite(losses[name]).all()
        again = medmoco.pretrain(settings(out, kind, precision=digits), resume=True, progress=False)
        assert again.status["state"] == "done"
    assert len(losses["compared"]) == len(losses["reference"])
    # The same views, weights and queue; later steps amplify the rounding.
    assert losses["compared"][0] == pytest.approx(losses["reference"][0], rel=TF32 if precision == "fp32" else 0.05)


@pytest.mark.usefixtures("workspace")
def test_evaluate__scores_agree(device: str) -> None:
    aurocs = [
        medmoco.evaluate(settings("runs/unused", kind), "runs/phantoms").to_frame()["auroc"].to_numpy()
        for kind in ("cpu", device)
    ]
    assert np.abs(aurocs[0] - aurocs[1]).max() <= 0.05  # two of the few images may swap ranks


@pytest.mark.usefixtures("workspace")
def test_bench__synthetic_images_on_a_device(device: str, tmp_path: Path) -> None:
    from medmoco.training.bench import measure
    from medmoco.training.synthetic import on_phantoms

    given = medmoco.load_config(settings(str(tmp_path / "run"), device))
    with on_phantoms(given, lambda _: None, side=64) as made:
        facts = measure(made, 0.5, lambda _: None)
    assert facts.device == device
    assert facts.step.median > 0
