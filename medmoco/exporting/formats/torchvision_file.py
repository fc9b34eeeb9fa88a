"""torchvision: a state dict with its names, for its network of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from medmoco.errors import CheckpointError
from medmoco.exporting.subject import NETWORK_PRECISIONS, Subject, refuse_other_heads, written
from medmoco.models.interop.naming import kind_of, naming_of, rename
from medmoco.models.interop.state_dicts import plain_tensors

# kind of network -> the first convolution, and the classifier, which an encoder lacks
_ENDS = {
    "resnet": ("conv1", "fc"),
    "densenet": ("features.conv0", "classifier"),
    "convnext": ("features.0.0", "classifier.2"),
    "vit": ("conv_proj", "heads"),
}


def refusal(subject: Subject) -> str | None:
    """Torchvision must have the same network, layer by layer."""
    if subject.backbone.dimensions == 3:
        return "torchvision has no such networks for volumes"
    name, kind = subject.backbone.name, kind_of(subject.backbone.name)
    if kind not in _ENDS or not (_is_plain_vit(subject) if kind == "vit" else _plain(name) in _models()):
        return f"{name} is not in torchvision, which has {', '.join(_models())} and ViTs with a class token"
    try:
        _state(subject)
    except CheckpointError as error:
        return str(error)
    return refuse_other_heads(subject)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write tensors that torch.load reads with weights_only=True."""
    file = folder / f"{subject.stem}.torchvision.pth"
    torch.save(plain_tensors(_state(subject)), file)
    return [file]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it: into a network with this first layer and, for an encoder, without a classifier."""
    backbone = subject.backbone
    kind = kind_of(backbone.name)
    assert kind is not None
    first_conv, classifier = _ENDS[kind]
    build: dict[str, Any] = _vit(subject) if kind == "vit" else {"function": _plain(backbone.name), "arguments": {}}
    if subject.head is not None:
        build["arguments"]["num_classes"] = subject.head.out_features
    layer = next(layer for layer in backbone.net.modules() if isinstance(layer, nn.Conv2d))
    shape = f"{layer.in_channels}, {layer.out_channels}, {layer.kernel_size[0]}, {layer.stride[0]}, {layer.padding[0]}"
    bias = "" if layer.bias is not None else ", bias=False"
    return {
        "library": "torchvision",
        "precisions": list(NETWORK_PRECISIONS),
        **build,
        "first_conv": first_conv,
        "replaced_by_identity": classifier if subject.head is None else None,
        "load": [
            f"net = torchvision.models.{build['function']}({written(build['arguments'])})",
            f'net.set_submodule("{first_conv}", torch.nn.Conv2d({shape}{bias}))',
            *([f'net.set_submodule("{classifier}", torch.nn.Identity())'] if subject.head is None else []),
            f'net.load_state_dict(torch.load("{subject.stem}.torchvision.pth", weights_only=True), strict=True)',
            "outputs = net.eval()(images)",
        ],
    }


def _plain(name: str) -> str:
    return name.removeprefix("monai/")


def _models() -> list[str]:
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if kind_of(name) in _ENDS.keys() - {"vit"}]


def _state(subject: Subject) -> dict[str, torch.Tensor]:
    name = subject.backbone.name
    return rename(subject.state, name, naming_of(name), "torchvision")


def _is_plain_vit(subject: Subject) -> bool:
    net: Any = subject.backbone.net
    return getattr(net, "global_pool", None) == "token" and net.norm.eps == 1e-6 and net.num_prefix_tokens == 1


def _vit(subject: Subject) -> dict[str, Any]:
    """Return how to build a ViT from its class, as torchvision names only some sizes."""
    net: Any = subject.backbone.net
    return {
        "function": "VisionTransformer",
        "arguments": {
            "image_size": subject.preprocessing.size,
            "patch_size": net.patch_embed.patch_size[0],
            "num_layers": len(net.blocks),
            "num_heads": net.blocks[0].attn.num_heads,
            "hidden_dim": net.embed_dim,
            "mlp_dim": net.blocks[0].mlp.fc1.out_features,
        },
    }
