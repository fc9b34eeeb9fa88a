from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco import config
from medmoco.data.manifest import load_manifest
from medmoco.errors import Stopped
from medmoco.evaluation.monitor import knn_monitor
from medmoco.training.checkpoint import load_backbone


def test_knn_monitor__sees_what_is_plain_and_leaves_the_encoder_in_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        lines = ["Path,Bright,Coin,Never"]
        for number in range(30):
            bright = number % 2
            pixels = np.clip(rng.normal(60 + 120 * bright, 20, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
            lines.append(f"{name}{number}.png,{bright},{rng.integers(2)},0")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    overrides = [
        "out=run", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels=[Bright, Coin, Never]",
        "data.canvas_size=32", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "train.device=cpu",
        "evaluate.neighbours=5",
    ]  # fmt: skip
    settings = config.load(None, overrides)
    backbone, _ = load_backbone("random", settings)
    backbone.train()
    found = knn_monitor(backbone, load_manifest(settings.data, ("train", "val")), settings, lambda: False)
    assert found["knn_auroc/Bright"] == pytest.approx(1.0)
    assert 0.2 < found["knn_auroc/Coin"] < 0.8
    assert np.isnan(found["knn_auroc/Never"])
    assert all(module.training for module in backbone.modules())
    with pytest.raises(Stopped):
        knn_monitor(backbone, load_manifest(settings.data, ("train", "val")), settings, lambda: True)
    assert backbone.training
