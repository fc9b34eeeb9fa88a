from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.patches import check_all_learn, check_patches, patch_features


def backbone_of(name: str, size: int = 64) -> Backbone:
    return create_backbone(ModelSettings(backbone=name), seed=1, size=size).eval()


def after(backbone: Backbone, layer: str, views: Tensor) -> Tensor:
    """Return what a layer gives."""
    kept: list[Tensor] = []
    hook = backbone.net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        backbone(views)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),  # a class token
        ("vit_small_patch16_dinov3", 5),  # and registers
        ("vit_tiny_r_s16_p8_224", 1),  # a convolutional stem
        ("deit_tiny_distilled_patch16_224", 2),
    ],
)
def test_patch_features__are_the_tokens_without_their_prefix(name: str, prefix: int) -> None:
    size = 96
    backbone, views = backbone_of(name, size), torch.randn(2, 1, size, size)
    grid = 3 if name.startswith("vit_tiny_r") else 6
    tokens = after(backbone, "norm", views)
    found = patch_features(backbone, views)
    assert found.shape == (2, grid, grid, backbone.feature_dim)
    for y in range(grid):
        for x in range(grid):
            assert torch.equal(found[:, y, x], tokens[:, prefix + grid * y + x])


def test_patch_features__know_where_a_patch_is() -> None:
    """Without attention, only the patch that changes changes."""
    backbone = backbone_of("test_vit")
    for module in backbone.net.modules():
        if type(module).__name__ == "Attention":
            nn.init.zeros_(module.proj.weight)
    views = torch.randn(1, 1, 64, 64)
    other = views.clone()
    other[..., 32:48, 16:32] += 1
    changed = (patch_features(backbone, views) != patch_features(backbone, other)).any(-1)[0]
    assert changed.nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "test_efficientnet"])
def test_patch_features__have_the_pooled_features_as_their_mean(name: str) -> None:
    backbone, views = backbone_of(name), torch.randn(2, 1, 96, 96)
    found = patch_features(backbone, views)
    assert found.shape == (2, 3, 3, backbone.feature_dim)
    torch.testing.assert_close(found.mean((1, 2)), backbone(views))


def test_patch_features__pass_what_stands_behind_the_pooling() -> None:
    """A norm of pooled features norms each place here, in a transformer as in a convolutional network."""
    views = torch.randn(2, 1, 64, 64)
    vit, convnext = backbone_of("test_vit2"), backbone_of("test_convnext")
    tokens = after(vit, "norm", views)[:, 1:]
    torch.testing.assert_close(patch_features(vit, views).flatten(1, 2), vit.net.fc_norm(tokens))
    maps = after(convnext, "stages", views)
    normed = convnext.net.head.norm(maps).permute(0, 2, 3, 1)
    torch.testing.assert_close(patch_features(convnext, views), normed)


def test_patch_features__of_channels_last_maps() -> None:
    backbone, views = backbone_of("swin_tiny_patch4_window7_224"), torch.randn(1, 1, 64, 64)
    found = patch_features(backbone, views)
    assert torch.equal(found, after(backbone, "norm", views))
    torch.testing.assert_close(found.mean((1, 2)), backbone(views))


@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_checks__leave_the_encoder_as_it_was(name: str) -> None:
    backbone = backbone_of(name).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    check_patches(backbone, 64, 4)
    check_all_learn(backbone, 64)
    assert backbone.training
    assert backbone.net.training
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "top", "reason"),
    [
        ("mixer_s32_224", 2, "no features for each position"),
        ("test_vit", 17, "finetune.top_patches 17: test_vit has only 16 patches in views of 64 pixels"),
        ("resnet10t", 5, "has only 4 patches"),
    ],
)
def test_check_patches__refuses_what_it_cannot_score(name: str, top: int, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        check_patches(backbone_of(name), 64, top)
    assert len(str(caught.value).splitlines()) <= 2


def test_check_all_learn__refuses_what_would_be_left_out() -> None:
    with pytest.raises(SettingsError, match="layers after its patches that would not be used, such as attn_pool"):
        check_all_learn(backbone_of("test_vit3"), 64)
    backbone = backbone_of("test_vit3")
    backbone.net.attn_pool.requires_grad_(False)  # what is frozen is not missed
    check_all_learn(backbone, 64)


def test_check_patches__refuses_networks_that_are_not_timms() -> None:
    with pytest.raises(SettingsError, match="made has no features for each position"):
        check_patches(Backbone("made", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), 4), 64, 2)
