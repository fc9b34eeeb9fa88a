from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from monai.networks import nets
from safetensors.torch import save_file
from torch import nn

from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError, SettingsError
from medmoco.models import backbones
from medmoco.models.backbones import Backbone, check_size, create_backbone, fix_patches, load_weights
from medmoco.models.interop.state_dicts import plain_tensors


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
    ("name", "earlier"),
    [
        ("resnet10t", ["layer2", "layer3"]),
        ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"]),
        ("convnext_atto", ["stages.1", "stages.2"]),
    ],
)
def test_create_backbone__features_of_more_stages_are_joined_to_those_of_the_last(
    name: str, earlier: list[str]
) -> None:
    plain = create_backbone(ModelSettings(backbone=name), seed=0, size=64).eval()
    joined = create_backbone(ModelSettings(backbone=name), seed=0, size=64, stages=3).eval()
    kept: list[torch.Tensor] = []
    for layer in earlier:
        plain.net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2].mean((2, 3))))
    with torch.inference_mode():
        images = torch.randn(2, 1, 64, 64)
        last, all_stages = plain(images), joined(images)
        assert torch.equal(joined.of_last_stage()(images), last)
    assert torch.equal(all_stages, torch.cat([*kept, last], 1))
    assert joined.feature_dim == all_stages.shape[1]
    assert joined.of_last_stage().feature_dim == plain.feature_dim
    assert plain.state_dict().keys() == joined.state_dict().keys()
    assert str(plain) != str(joined)


def test_create_backbone__of_a_transformer_the_blocks_are_stages() -> None:
    backbone = create_backbone(ModelSettings(backbone="vit_tiny_patch16_224"), seed=0, size=224, stages=4).eval()
    assert backbone(torch.randn(1, 1, 224, 224)).shape == (1, 4 * 192)


@pytest.mark.parametrize(
    ("name", "reason"), [("monai/densenet121", "only its last features; set it to 1"), ("resnet10t", "only 5 stages")]
)
def test_create_backbone__stages_that_there_are_not(name: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        create_backbone(ModelSettings(backbone=name), seed=0, size=64, stages=6)


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


def test_create_backbone__a_network_that_timm_builds_when_told() -> None:
    backbone = create_backbone(ModelSettings(backbone="moco-v3/vit_tiny"), seed=0, size=64)
    assert (backbone.name, backbone.feature_dim, backbone.fixed_size) == ("moco-v3/vit_tiny", 192, 64)
    assert backbone.net.blocks[0].attn.num_heads == 12  # type: ignore[index, union-attr]


def test_fix_patches__of_a_plain_transformer_alone() -> None:
    backbone = create_backbone(ModelSettings(backbone="vit_tiny_patch16_224"), seed=0, size=32)
    fix_patches(backbone)
    fixed = {name for name, parameter in backbone.net.named_parameters() if not parameter.requires_grad}
    assert fixed == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    for name in ("resnet10t", "moco-v3/vit_conv_tiny"):
        with pytest.raises(SettingsError, match=f"model.fixed_patches: {name} does not project patches with"):
            fix_patches(create_backbone(ModelSettings(backbone=name), seed=0, size=32))


def test_create_backbone__starts_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    rgb = timm.create_model("resnet18", num_classes=5).eval()
    torch.save({"state_dict": rgb.state_dict()}, tmp_path / "w.pth")
    backbone = create_backbone(ModelSettings(backbone="resnet18", init=tmp_path / "w.pth"), seed=0, size=64).eval()
    gray = torch.randn(2, 1, 64, 64)
    expected = rgb.forward_head(rgb.forward_features(gray.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(backbone(gray), expected, rtol=1e-4, atol=1e-5)
    assert backbone.start == (
        "weights file w.pth: query encoder of a plain file with names of timm: 119 tensors unchanged,"
        " 1 converted (1 RGB summed to gray), 2 left out (2 classifier)"
    )
    assert create_backbone(ModelSettings(backbone="resnet18"), seed=0, size=64).start is None


def test_load_weights__changes_nothing_where_it_refuses(tmp_path: Path) -> None:
    backbone = create_backbone(ModelSettings(backbone="resnet18"), seed=0, size=64)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = {key: value + 1 for key, value in backbone.net.state_dict().items()}
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing tensors \(first: layer1.0.conv1.weight\); 1 unknown keys"):
        load_weights(backbone, tmp_path / "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "moco-v3/vit_conv_tiny", "monai/densenet121"])
@pytest.mark.parametrize("channels", [3, 5])
def test_create_backbone__takes_images_of_any_channels(name: str, channels: int) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=32, channels=channels).eval()
    with torch.inference_mode():
        assert backbone(torch.zeros(1, channels, 32, 32)).shape == (1, backbone.feature_dim)
    assert backbone.channels == channels


def test_load_weights__colours_stay_colours_and_no_other_channels_are_made_up(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = ModelSettings(backbone="resnet18", init=tmp_path / "w.pth")
    backbone = create_backbone(model, seed=0, size=32, channels=3)
    torch.testing.assert_close(backbone.net.state_dict()["conv1.weight"], state["conv1.weight"], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"takes 3 channels, but data\.channels gives 5"):
        create_backbone(model, seed=0, size=32, channels=5)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (
            "inception_v3",
            32,
            r"32 x 32 pixels \(views\.size\):\nRuntimeError: .*\nRaise views\.size \(80 is enough\)",
        ),
        ("vgg11", 16, r"16 x 16 .*\n.*\nRaise views\.size \(32 is enough\), or choose another model\.backbone"),
        ("levit_128", 100, r"100 x 100 .*\n.*\nChoose another views\.size, or choose another model\.backbone"),
    ],
)
def test_check_size__names_the_setting_and_the_remedy(name: str, size: int, words: str) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=size)
    with pytest.raises(SettingsError, match=words) as caught:
        check_size(backbone, size)
    assert len(str(caught.value).splitlines()) <= 5
    check_size(create_backbone(ModelSettings(backbone=name), seed=0, size=224), 224)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0"])
def test_check_size__leaves_a_network_as_it_was(name: str) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=32)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    check_size(backbone, 32)
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_check_size__what_shapes_alone_cannot_tell_is_tried() -> None:
    class Reading(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.sum().item() == 0  # shapes have no values
            return images.flatten(1)[:, :8]

    check_size(Backbone("mine", Reading(), 8), 32)
    with pytest.raises(SettingsError, match=r"it returns \(2, 8\) for 2 images instead of \(2, 9\)"):
        check_size(Backbone("mine", Reading(), 9), 32)


def test_create_backbone__a_tag_of_weights_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"the tag \.a1_in1k refers to weights.*\nUse resnet50\."):
        create_backbone(ModelSettings(backbone="resnet50.a1_in1k"), seed=0, size=64)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("nnunet/resenc_5stages", 16, r"volumes of 16 x 16 x 16 voxels \(views\.size\):\n.*\n.*\(32 is enough\)"),
        ("monai/densenet121", 16, r"volumes of 16 x 16 x 16 voxels \(views\.size\):\n.*\n.*\(32 is enough\)"),
    ],
)
def test_check_size__of_volumes(name: str, size: int, words: str) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=size, dimensions=3)
    with pytest.raises(SettingsError, match=words) as caught:
        check_size(backbone, size)
    assert len(str(caught.value).splitlines()) <= 5
    check_size(backbone, 32)


@pytest.mark.parametrize("size", [16, 40, 96])
@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "monai/swin_unetr", "nnunet/resenc_4stages_quarter"])
def test_check_size__of_volumes_computes_shapes_alone(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=size, dimensions=3)
    devices: list[str] = []
    misfit = backbones._misfit
    monkeypatch.setattr(backbones, "_misfit", lambda *given: devices.append(given[2]) or misfit(*given))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    check_size(backbone, size)
    assert devices == ["meta"]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_create_backbone__networks_for_volumes_do_not_take_images() -> None:
    for name in ("nnunet/resenc", "monai/resnet10"):
        with pytest.raises(SettingsError, match=f"'{name}' is a network for volumes; set data.dimensions=3"):
            create_backbone(ModelSettings(backbone=name), seed=0, size=64)


@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        ("monai/resnet10_quarter", ["layer2", "layer3"]),
        pytest.param("monai/resnet50", ["layer2", "layer3"], marks=pytest.mark.slow),
        ("monai/densenet121", ["features.denseblock2", "features.denseblock3"]),
        ("nnunet/resenc_4stages_quarter", ["stages.1", "stages.2"]),
        pytest.param("monai/swin_unetr", None, marks=pytest.mark.slow),
    ],
)
def test_create_backbone__features_of_more_stages_of_volumes(name: str, earlier: list[str] | None) -> None:
    model = ModelSettings(backbone=name)
    plain = create_backbone(model, seed=0, size=32, dimensions=3).eval()
    joined = create_backbone(model, seed=0, size=32, dimensions=3, stages=3).eval()
    kept: list[torch.Tensor] = []
    for layer in earlier or ():
        plain.net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2].mean((2, 3, 4))))
    with torch.inference_mode():
        volumes = torch.randn(2, 1, 32, 32, 32)
        last, all_stages = plain(volumes), joined(volumes)
        if earlier is None:  # it returns the maps of all stages
            kept = [one.mean((2, 3, 4)) for one in plain.net(volumes)[-3:-1]]
        assert torch.equal(all_stages, torch.cat([*kept, last], 1))
        assert torch.equal(joined(volumes), all_stages)  # the first call left nothing behind
        assert torch.equal(joined.of_last_stage()(volumes), last)
    assert joined.feature_dim == all_stages.shape[1]
    assert plain.state_dict().keys() == joined.state_dict().keys()


def test_create_backbone__stages_of_volumes_that_there_are_not() -> None:
    model = ModelSettings(backbone="monai/resnet10_quarter")
    with pytest.raises(SettingsError, match=r"evaluate\.stages 5: monai/resnet10_quarter has only 4 stages"):
        create_backbone(model, seed=0, size=32, stages=5, dimensions=3)


@pytest.mark.parametrize(
    ("name", "library"),
    [("monai/resnet10_quarter", "monai"), ("monai/swin_unetr", "monai"), ("nnunet/resenc_4stages_quarter", "nnU-Net")],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_create_backbone__of_volumes_starts_from_a_file(tmp_path: Path, name: str, library: str, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    saved = create_backbone(ModelSettings(backbone=name), seed=1, size=32, dimensions=3)
    state = plain_tensors(saved.net.state_dict())
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    loaded = create_backbone(ModelSettings(backbone=name, init=file), seed=0, size=32, dimensions=3)
    assert all(torch.equal(value, loaded.net.state_dict()[key]) for key, value in state.items())
    assert loaded.start is not None
    assert f"names of {library}: {len(state)} tensors unchanged, 0 converted, 0 left out" in loaded.start


def test_create_backbone__starts_from_weights_with_the_names_of_medicalnet(tmp_path: Path) -> None:
    theirs = nets.ResNetFeatures("resnet10", pretrained=False, spatial_dims=3, in_channels=1).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, tmp_path / "w.pth")
    model = ModelSettings(backbone="monai/resnet10", init=tmp_path / "w.pth")
    loaded = create_backbone(model, seed=0, size=32, dimensions=3).net.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in theirs.items())


def test_load_weights__of_an_image_network_do_not_fit_volumes(tmp_path: Path) -> None:
    images = create_backbone(ModelSettings(backbone="monai/densenet121"), seed=0, size=32)
    save_file(plain_tensors(images.net.state_dict()), tmp_path / "w.safetensors")
    model = ModelSettings(backbone="monai/densenet121", init=tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="shape"):
        create_backbone(model, seed=0, size=32, dimensions=3)
