from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medmoco import config
from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, read_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.models.backbones import create_backbone

LABELS = ("Sick", "Tube")


def make_settings(tmp_path: Path, *overrides: str) -> config.RunSettings:
    base = [
        f"out={tmp_path / 'run'}", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels=[Sick, Tube]",
        "data.canvas_size=40", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "train.device=cpu",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


def make_classifier(backbone: str = "test_resnet", labels: int = 2, **options: Any) -> ClassifierNetwork:
    encoder = create_backbone(ModelSettings(backbone=backbone), seed=3, size=32)
    torch.manual_seed(0)
    return ClassifierNetwork(encoder, nn.Linear(encoder.feature_dim, labels), **options)


def facts_of(settings: config.RunSettings, labels: tuple[str, ...] = LABELS, **changes: Any) -> dict[str, Any]:
    facts = describe_classifier(
        settings,
        labels,
        trained="fine-tuned",
        encoder={"kind": "run", "step": 7},
        val_auroc=dict.fromkeys(labels, 0.75),
        calibration={label: {"kind": "platt", "slope": 1.5, "intercept": -0.5} for label in labels},
        operating_points={label: [{"specificity": 0.9, "threshold": 0.25}] for label in labels},
    )
    return facts | changes


def test_save_classifier__is_read_back_and_scores_the_same(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "data.window=[40, 400]", "evaluate.mirror=true")
    classifier = make_classifier(mirror=True)
    save_classifier(tmp_path / "c", classifier, facts_of(settings))
    again, facts = read_classifier(tmp_path / "c")
    views = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(again(views), classifier.eval()(views), rtol=0, atol=0)
    assert facts.labels == LABELS
    assert facts.model_dump(mode="json")["data"] == {
        "canvas_size": 40, "bit_depth": 8, "window": [40.0, 400.0], "dimensions": 2, "spacing": None,
        "channels": "gray", "scale": "linear",
        "band_ranges": None,
    }  # fmt: skip
    assert facts.calibration["Sick"].model_dump() == {"kind": "platt", "slope": 1.5, "intercept": -0.5}
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["classifier.json", "classifier.safetensors"]


def test_save_classifier__holds_plain_names_and_no_place(tmp_path: Path) -> None:
    save_classifier(tmp_path / "c", make_classifier(), facts_of(make_settings(tmp_path)))
    state = load_file(tmp_path / "c" / "classifier.safetensors")
    encoder = make_classifier().backbone.net.state_dict()
    assert set(state) == {f"backbone.{name}" for name in encoder} | {"head.weight", "head.bias"}
    for file in (tmp_path / "c").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_save_classifier__refuses_what_is_not_finite_or_not_its_own(tmp_path: Path) -> None:
    classifier, settings = make_classifier(), make_settings(tmp_path)
    with pytest.raises(ValueError, match="another classifier"):
        save_classifier(tmp_path / "c", classifier, facts_of(settings, ("Sick",)))
    with pytest.raises(ValueError, match="val_auroc does not name the labels"):
        save_classifier(tmp_path / "c", classifier, facts_of(settings, val_auroc={}))
    classifier.head.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        save_classifier(tmp_path / "c", classifier, facts_of(settings))
    assert not (tmp_path / "c").exists()


def test_save_classifier__of_patches_and_folders_from_before_there_were_any(tmp_path: Path) -> None:
    settings, folder = make_settings(tmp_path), tmp_path / "c"
    classifier = make_classifier("test_vit", top_patches=3)
    with pytest.raises(ValueError, match="another classifier"):
        save_classifier(folder, classifier, facts_of(settings, backbone="test_vit"))
    save_classifier(folder, classifier, facts_of(settings, backbone="test_vit", head="patches", top_patches=3))
    views = torch.randn(2, 1, 32, 32)
    assert torch.equal(read_classifier(folder)[0](views), classifier.eval()(views))
    for changes, reason in (
        ({"head": "linear"}, "head and top_patches contradict"),
        ({"top_patches": 5}, "has only 4 patches"),
        ({"top_patches": 0}, "top_patches"),
    ):
        text = (folder / "classifier.json").read_text()
        _change(folder / "classifier.json", **changes)
        with pytest.raises(CheckpointError, match=reason):
            read_classifier(folder)
        (folder / "classifier.json").write_text(text)
    save_classifier(folder, make_classifier(), facts_of(settings))
    tree = json.loads((folder / "classifier.json").read_text())
    del tree["head"], tree["top_patches"]
    (folder / "classifier.json").write_text(json.dumps(tree))
    assert read_classifier(folder)[0].top_patches is None


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_read_classifier__refuses_what_is_damaged_or_foreign(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(CheckpointError, match=r"not a classifier folder: it has no classifier\.json"):
        read_classifier(folder)
    save_classifier(folder, make_classifier(), facts_of(make_settings(tmp_path)))
    weights, facts = folder / "classifier.safetensors", folder / "classifier.json"
    sound, text = weights.read_bytes(), facts.read_text()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        read_classifier(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_classifier(folder)
    weights.write_bytes(sound)
    for changes, reason in (
        ({"format": 2}, "format"),
        ({"labels": ["Sick"]}, "does not name the labels"),
        ({"backbone": "resnet10t"}, "does not match a resnet10t"),
        ({"backbone": "no_such_net"}, "is not a timm model"),
        ({"size": "big"}, "size"),
    ):
        facts.write_text(text)
        _change(facts, **changes)
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_classifier(folder)
        assert len(str(caught.value).splitlines()) <= 5
    for broken in (text[:40], "[]", "[" * 100_000):
        facts.write_text(broken)
        with pytest.raises(CheckpointError, match="damaged or of another version"):
            read_classifier(folder)
