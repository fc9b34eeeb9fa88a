"""An encoder's features of each patch of an image, before it pools them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone

_REMEDY = "take one of timm's vision transformers or convolutional networks, or finetune.head=linear"


def patch_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the features of each place of the last feature map, (B, C, H, W) -> (B, h, w, F).

    Of a vision transformer these are the tokens of the patches; class token and registers are left out. What the
    network has between pooling and classifier, such as a norm, is applied to each place as if it were the whole image.

    Args:
        backbone: That `check_patches` takes.
        images: Normalised.
    """
    net: Any = backbone.net
    unpooled = net.forward_features(images)
    if unpooled.ndim == 3:  # tokens, (B, prefix + h * w, F)
        height, width = net.patch_embed.dynamic_feat_size(images.shape[-2:])
        tokens = net.head_drop(net.fc_norm(unpooled[:, net.num_prefix_tokens :]))
        patches: Tensor = tokens.reshape(-1, height, width, backbone.feature_dim)
        return patches
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    places = unpooled if channels_last else unpooled.permute(0, 2, 3, 1)  # (B, h, w, C)
    alone = places.flatten(0, 2)[:, None, None]  # (B * h * w, 1, 1, C)
    features = net.forward_head(alone if channels_last else alone.permute(0, 3, 1, 2), pre_logits=True)
    mapped: Tensor = features.reshape(-1, *places.shape[1:3], backbone.feature_dim)
    return mapped


def check_patches(backbone: Backbone, size: int, top: int) -> None:
    """Refuse an encoder without patches, or with fewer than are wanted.

    Args:
        backbone: Is tried, and left as it is.
        size: Side of the views in pixels.
        top: How many patches of an image count.

    Raises:
        SettingsError: see above.
    """
    if not _has_patches(backbone, size):
        raise SettingsError(
            f"finetune.head=patches: {backbone.name} gives no features of each place of an image;\n{_REMEDY}"
        )
    with torch.inference_mode(), _in_eval_mode(backbone):
        places = patch_features(backbone, _blank(backbone, size))[0, :, :, 0].numel()
    if top > places:
        raise SettingsError(
            f"finetune.top_patches {top}: {backbone.name} has only {places} patches in views of {size} pixels;\n"
            "lower it, or raise views.size and evaluate.size"
        )


def check_all_learn(backbone: Backbone, size: int) -> None:
    """Refuse an encoder with layers that pooled features alone go through: nothing would train or use them.

    Args:
        backbone: That `check_patches` takes; is left as it is.
        size: Side of the views in pixels.

    Raises:
        SettingsError: see above.
    """
    trained = {name: weights for name, weights in backbone.net.named_parameters() if weights.requires_grad}
    with _in_eval_mode(backbone):
        features = patch_features(backbone, _blank(backbone, size))
    slopes = torch.autograd.grad(features.sum(), list(trained.values()), allow_unused=True)
    idle = [name for name, slope in zip(trained, slopes, strict=True) if slope is None]
    if idle:
        raise SettingsError(
            f"finetune.head=patches: {backbone.name} has layers behind its patches that would be left out, such as"
            f" {idle[0]};\n{_REMEDY}"
        )


def _has_patches(backbone: Backbone, size: int) -> bool:
    """Say whether timm gives the network's last features with their places."""
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
    """Keep running statistics as they are."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)


def _blank(backbone: Backbone, size: int) -> Tensor:
    """Return an image to try an encoder with."""
    return torch.zeros(1, backbone.channels, size, size)
