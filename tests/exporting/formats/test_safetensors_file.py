from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medmoco.exporting.formats import safetensors_file


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "monai/densenet121", "moco-v3/vit_conv_tiny"])
def test_write__a_classifier_is_one_plain_network(tmp_path: Path, make_subject, read_back, name: str) -> None:
    subject = make_subject(name, head=True, mirror=True, exclusive=True)
    found, expected = read_back("safetensors", subject, tmp_path)
    assert set(found) == {"logits", "probabilities"}
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=2e-6)


def test_write__tensors_alone_under_timm_names(tmp_path: Path, make_subject) -> None:
    subject = make_subject("resnet10t")
    (file,) = safetensors_file.write(subject, tmp_path)
    assert file.name == "encoder.safetensors"
    with safe_open(file, "pt") as content:
        assert content.metadata() == {"format": "pt"}
    timm.create_model("resnet10t", in_chans=1, num_classes=0).load_state_dict(load_file(file), strict=True)


@pytest.mark.parametrize("name", ["monai/densenet121", "moco-v3/vit_conv_tiny"])
def test_describe__lines_of_the_card_run(
    tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    subject = make_subject(name)
    safetensors_file.write(subject, tmp_path)
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 1, 32, 32)
    scope = {"images": images}
    exec(
        "import monai, safetensors.torch, timm, torch\n" + "\n".join(safetensors_file.describe(subject)["load"]), scope
    )
    torch.testing.assert_close(scope["outputs"], subject.backbone(images))
