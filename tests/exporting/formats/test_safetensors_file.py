from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medmoco.exporting.formats import safetensors_file
from tests.helpers.volume_subjects import volume_subject


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


@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "monai/densenet121", "nnunet/resenc_4stages_quarter"])
def test_describe__code_for_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    subject = volume_subject(name)
    safetensors_file.write(subject, tmp_path)
    monkeypatch.chdir(tmp_path)
    libraries = "import torch, monai.networks.nets, safetensors.torch, dynamic_network_architectures\n"
    if name.startswith("nnunet"):
        libraries += "import dynamic_network_architectures.building_blocks.residual_encoders\n"
    scope = {"images": torch.randn(2, 1, 32, 32, 32)}
    exec(libraries + "\n".join(safetensors_file.describe(subject)["load"]), scope)
    found = scope.get("features", scope["outputs"])
    torch.testing.assert_close(found, subject.backbone(scope["images"]))


@pytest.mark.parametrize(
    "name", ["monai/resnet10_quarter", pytest.param("nnunet/resenc_4stages_quarter", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("form", ["safetensors", "onnx", "program", "monai-bundle", "nnunet"])
def test_write__every_format_of_volumes_reads_back(tmp_path: Path, read_back, form: str, name: str) -> None:
    if form == "nnunet" and not name.startswith("nnunet"):
        pytest.skip("nnU-Net has its own encoders only")
    found, expected = read_back(form, volume_subject(name), tmp_path)
    np.testing.assert_allclose(found["features"], expected["features"], atol=1e-5 * expected["features"].max())
