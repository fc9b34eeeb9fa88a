"""Features of each patch of an image, before the encoder's pooling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone

_REMEDY = "use a vision transformer or convolutional network of timm, or finetune.head=linear"


def patch_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the features at each position of the last feature map, (B, C, H, W) -> (B, h, w, F).

    For a vision transformer these are the tokens of the patches, without class token and registers. Layers between
    pooling and classifier, such as a norm, are applied to each position as if it were the whole image. The encoder must
    pass `check_patches`.
    """
    net: Any = backbone.net
    unpooled = net.forward_features(images)
    if unpooled.ndim == 3:  # tokens, (B, prefix + h * w, F)
        height, width = net.patch_embed.dynamic_feat_size(images.shape[-2:])
        tokens = net.head_drop(net.fc_norm(unpooled[:, net.num_prefix_tokens :]))
        patches: Tensor = tokens.reshape(-1, height, width, backbone.feature_dim)
        return patches
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    grid = unpooled if channels_last else unpooled.permute(0, 2, 3, 1)  # (B, h, w, C)
    single = grid.flatten(0, 2)[:, None, None]  # (B * h * w, 1, 1, C)
    features = net.forward_head(single if channels_last else single.permute(0, 3, 1, 2), pre_logits=True)
    mapped: Tensor = features.reshape(-1, *grid.shape[1:3], backbone.feature_dim)
    return mapped


def check_patches(backbone: Backbone, size: int, top: int) -> None:
    """Raise SettingsError if an encoder has no patch features, or fewer than `top` in a view of `size` pixels."""
    if not _has_patches(backbone, size):
        raise SettingsError(
            f"finetune.head=patches: {backbone.name} has no features for each position of an image;\n{_REMEDY}"
        )
    with torch.inference_mode(), _in_eval_mode(backbone):
        patches = patch_features(backbone, _blank(backbone, size))[0, :, :, 0].numel()
    if top > patches:
        raise SettingsError(
            f"finetune.top_patches {top}: {backbone.name} has only {patches} patches in views of {size} pixels;\n"
            "lower it, or raise views.size and evaluate.size"
        )


def check_all_learn(backbone: Backbone, size: int) -> None:
    """Raise SettingsError if layers only serve pooled features, and so would not be trained with patch features.

    The encoder must pass `check_patches`.
    """
    trained = {name: weights for name, weights in backbone.net.named_parameters() if weights.requires_grad}
    with _in_eval_mode(backbone):
        features = patch_features(backbone, _blank(backbone, size))
    gradients = torch.autograd.grad(features.sum(), list(trained.values()), allow_unused=True)
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if unused:
        raise SettingsError(
            f"finetune.head=patches: {backbone.name} has layers after its patches that would not be used, such as"
            f" {unused[0]};\n{_REMEDY}"
        )


def _has_patches(backbone: Backbone, size: int) -> bool:
    """Return whether timm provides the network's last features by position."""
    net: Any = backbone.net
    if not hasattr(net, "forward_features") or not hasattr(net, "forward_head"):
        return False
    with torch.inference_mode(), _in_eval_mode(backbone):
        unpooled = net.forward_features(_blank(backbone, size))
    if unpooled.ndim != 3:
        return bool(unpooled.ndim == 4)
    if not all(hasattr(net, name) for name in ("num_prefix_tokens", "fc_norm", "head_drop", "patch_embed")):
        return False
    height, width = net.patch_embed.dynamic_feat_size((size, size))
    return bool(unpooled.shape[1] == net.num_prefix_tokens + height * width)


@contextmanager
def _in_eval_mode(backbone: Backbone) -> Iterator[None]:
    """Switch to eval mode, so that running statistics do not change, and back."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)


def _blank(backbone: Backbone, size: int) -> Tensor:
    """Return a blank image to test an encoder."""
    return torch.zeros(1, backbone.channels, size, size)
