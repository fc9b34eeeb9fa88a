from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.backbones import create_backbone, load_weights, read_state_dict


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("densenet121", 1024),
        ("vit_small_patch16_224", 384),
        ("convnext_tiny", 768),
        ("monai/densenet121", 1024),
        pytest.param("resnet50", 2048, marks=pytest.mark.slow),
        pytest.param("monai/seresnet50", 2048, marks=pytest.mark.slow),
    ],
)
def test_create_backbone__one_channel_in_features_out(name: str, width: int) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=64)
    features = backbone.eval()(torch.randn(2, 1, 64, 64))
    assert features.shape == (2, width)
    assert backbone.feature_dim == width
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "hint"), [("resnet81", "resnet18"), ("monai/vgg", "densenet121"), ("x/resnet18", "timm")]
)
def test_create_backbone__unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=hint):
        create_backbone(ModelSettings(backbone=name), seed=0, size=64)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet10t"])
def test_create_backbone__no_residual_branch_starts_silent(name: str) -> None:
    def silent(module: nn.Module) -> int:
        return sum(not m.weight.any() for m in module.modules() if isinstance(m, nn.BatchNorm2d))

    assert silent(create_backbone(ModelSettings(backbone=name), seed=0, size=64)) == 0
    assert silent(timm.create_model(name)) > 0  # what timm does


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_weights__sums_three_channels_to_one(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    rgb = timm.create_model("resnet18", num_classes=5).eval()
    file = tmp_path / f"rgb{suffix}"
    state = {key: value.contiguous() for key, value in rgb.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    backbone = create_backbone(ModelSettings(backbone="resnet18", weights=file), seed=0, size=64).eval()
    gray = torch.randn(2, 1, 64, 64)
    expected = rgb.forward_head(rgb.forward_features(gray.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(backbone(gray), expected, rtol=1e-4, atol=1e-5)


def test_load_weights__names_what_does_not_fit(tmp_path: Path) -> None:
    backbone = create_backbone(ModelSettings(backbone="resnet18"), seed=0, size=64)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = {key: value.contiguous() for key, value in backbone.net.state_dict().items()}
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first: layer1.0.conv1.weight\); 1 unexpected"):
        load_weights(backbone, tmp_path / "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled!",)


def test_read_state_dict__never_unpickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "args": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_state_dict(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a file of tensors"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_state_dict__damaged_or_absent(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state_dict(file)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\."):
        read_state_dict(file)
