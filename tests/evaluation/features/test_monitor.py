from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco import config
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import Stopped
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.monitor import knn_monitor, validation_scores


def test_validation_scores__of_copies_are_equal_in_every_batch_and_all_or_none_where_neighbours_agree(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("val", 11)):
        lines = ["Path,Coin,Always"]
        for number in range(count):
            place = number % 3 if name == "val" else number  # of val there are three images, again and again
            pixels = np.random.default_rng([place, len(name)]).integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
            lines.append(f"{name}{number}.png,{rng.integers(2)},{int(name == 'train' or number % 2)}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    overrides = [
        "out=run", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels=[Coin, Always]",
        "data.canvas_size=32", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "train.device=cpu",
        "train.precision=fp32", "evaluate.neighbours=7", "evaluate.batch_size=4",
    ]  # fmt: skip
    settings = config.load(None, overrides)
    backbone = load_encoder("random", settings).module
    scores = validation_scores(
        backbone, load_manifest(settings.data, ("train", "val")), settings, stop_asked=lambda: False
    )
    assert len(set(scores[:, 0])) == 3
    np.testing.assert_array_equal(scores, scores[np.arange(11) % 3])
    assert (scores[:, 1] == 1).all()


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
    backbone = load_encoder("random", settings).module
    backbone.train()
    found = knn_monitor(backbone, load_manifest(settings.data, ("train", "val")), settings, lambda: False)
    assert found["knn_auroc/Bright"] == pytest.approx(1.0)
    assert 0.2 < found["knn_auroc/Coin"] < 0.8
    assert np.isnan(found["knn_auroc/Never"])
    assert all(module.training for module in backbone.modules())
    with pytest.raises(Stopped):
        knn_monitor(backbone, load_manifest(settings.data, ("train", "val")), settings, lambda: True)
    assert backbone.training
