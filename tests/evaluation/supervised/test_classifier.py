from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medmoco.data.manifest.manifest import load_manifest
from medmoco.evaluation.features.features import extract
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.classifier_folder import save_classifier
from tests.evaluation.supervised.test_classifier_folder import facts_of, make_classifier, make_settings


def test_prepared__takes_the_preparation_of_the_classifier_and_says_so(tmp_path: Path) -> None:
    own = make_settings(tmp_path, "views.mean=0.4", "data.window=full", "evaluate.size=48")
    save_classifier(tmp_path / "c", make_classifier(), facts_of(own))
    classifier = load_classifier(tmp_path / "c")
    same, changes = classifier.prepared(own)
    assert changes == []
    assert same == own
    other = make_settings(tmp_path, "data.canvas_size=64", "model.backbone=resnet10t")
    found, changes = classifier.prepared(other)
    assert (found.data.canvas_size, found.data.window, found.views.mean, found.evaluate.size) == (40, "full", 0.4, 48)
    assert [line.split(",")[0] for line in changes] == [
        "model.backbone is test_resnet", "data.canvas_size is 40", "data.window is full", "views.mean is 0.4",
        "evaluate.size is 48",
    ]  # fmt: skip


def test_score__prepares_as_the_folder_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["Path,Sick,Tube"]
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (50, 44), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,1,0")
    (tmp_path / "test.csv").write_text("\n".join(lines))
    own, other = make_settings(tmp_path), make_settings(tmp_path, "views.size=24", "views.std=0.5", "evaluate.size=20")
    split = load_manifest(own.data, ("test",))["test"]
    network, cpu = make_classifier(), torch.device("cpu")
    save_classifier(tmp_path / "c", network, facts_of(own))
    scores = load_classifier(tmp_path / "c").score(split, other)
    features = extract({"encoder": network.backbone}, split, own, cpu).features["encoder"]
    head = network.head
    expected = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert scores.shape == (6, 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
