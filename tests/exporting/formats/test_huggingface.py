from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from timm.data import resolve_data_config

from medmoco.exporting.formats import huggingface


@pytest.mark.parametrize(("name", "head"), [("resnet10t", False), ("test_vit", True)])
def test_write__timm_builds_it_from_the_folder(tmp_path: Path, make_subject, read_back, name: str, head: bool) -> None:
    found, expected = read_back("huggingface", make_subject(name, head=head), tmp_path)
    assert set(found) == ({"logits", "probabilities"} if head else {"features"})
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=2e-6)


def test_write__timm_knows_how_images_are_prepared(tmp_path: Path, make_subject) -> None:
    files = huggingface.write(make_subject("test_vit", head=True), tmp_path)
    assert [file.name for file in files] == ["config.json", "model.safetensors", "README.md"]
    net = timm.create_model(f"local-dir:{tmp_path / 'huggingface'}", pretrained=True)
    data = resolve_data_config({}, model=net)
    assert tuple(data["input_size"]) == (1, 32, 32)
    assert (list(data["mean"]), list(data["std"])) == ([0.5], [0.25])
    assert (data["crop_pct"], data["crop_mode"], data["interpolation"]) == (1.0, "squash", "bilinear")
    assert net.pretrained_cfg["label_names"] == ["Opacity", "Nodule", "Effusion"]


def test_write__card_has_the_fields_of_the_hub(tmp_path: Path, make_subject) -> None:
    subject = make_subject("test_vit")
    files = huggingface.write(subject, tmp_path)
    head = yaml.safe_load(files[2].read_text().split("---")[1])
    assert head["library_name"] == "timm"
    assert head["license_name"] == "not stated"
    assert "not a medical device" in files[2].read_text()
    assert json.loads(files[0].read_text())["pretrained_cfg"]["license"] == "not stated"


def test_refusal__networks_of_monai(make_subject) -> None:
    assert huggingface.refusal(make_subject("monai/densenet121")) == "monai/densenet121 is not a timm network"
