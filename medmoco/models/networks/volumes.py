"""Encoders of volumes by name: from MONAI, and nnU-Net's residual encoder.

A network is described by the function that builds it and plain arguments, so that an export can say how to build it
without medmoco. Its tensors keep the names of its library: those of `monai/swin_unetr` follow "swinViT." in a
SwinUNETR, and those of `nnunet/resenc` follow "encoder." in nnU-Net's network.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medmoco.errors import SettingsError

TO_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments of nnU-Net's networks that are names of classes. Source: `_kw_requires_import` in its plans."""


_OF_CLASSIFIERS = ("feed_forward", "out_channels")  # arguments of MONAI's networks


@dataclass(frozen=True)
class VolumeNetwork:
    """How to build a network.

    Attributes:
        function: Import path of the function or class.
        channels: Its argument for the number of input channels.
        arguments: All others.
        widths: Widths of the maps of its stages; the last is that of the pooled features.
        layers: The layers whose outputs are the maps of the stages; none if the network returns the maps itself.
        stem: The layer whose output is the map before the first stage, if it is finer than that.
        classifier: The layer to replace by an identity.
        also: Optional library that this one needs.
    """

    function: str
    channels: str
    arguments: dict[str, Any]
    widths: tuple[int, ...]
    layers: tuple[str, ...] = ()
    stem: str | None = None
    classifier: str | None = None
    also: str | None = None

    @property
    def library(self) -> str:
        """Name of the library as it is imported."""
        return self.function.partition(".")[0]


def _resnet(depth: int, width: int, widen_factor: float = 1.0) -> VolumeNetwork:
    """Describe a ResNet of MONAI.

    The stride of the first layer and shortcuts without bias are those of MedicalNet (Chen et al. 2019,
    arXiv:1904.00625), whose weights fit resnet10 and resnet50. For resnet18 and resnet34, MedicalNet fills up shortcuts
    with zeros; through these, MONAI passes no gradients, so all depths have shortcuts with a convolution.
    """
    arguments = {
        "spatial_dims": 3, "feed_forward": False, "conv1_t_stride": 2, "bias_downsample": False,
        "widen_factor": widen_factor,
    }  # fmt: skip
    widths = (width // 8, width // 4, width // 2, width)
    layers = ("layer1", "layer2", "layer3", "layer4")
    return VolumeNetwork(f"monai.networks.nets.resnet{depth}", "n_input_channels", arguments, widths, layers, "act")


def _swin_unetr(width: int) -> VolumeNetwork:
    """Describe the encoder of a SwinUNETR with `feature_size` width. Source: the defaults of MONAI's SwinUNETR."""
    arguments = {
        "embed_dim": width, "window_size": (7, 7, 7), "patch_size": (2, 2, 2), "depths": (2, 2, 2, 2),
        "num_heads": (3, 6, 12, 24),
    }  # fmt: skip
    widths = tuple(width * 2**stage for stage in range(5))
    return VolumeNetwork("monai.networks.nets.swin_unetr.SwinTransformer", "in_chans", arguments, widths, also="einops")


def _residual_encoder(stages: int, width: int = 32) -> VolumeNetwork:
    """Describe the encoder of nnU-Net's residual encoder U-Net.

    ResEncM, ResEncL and ResEncXL differ in the size and number of patches; their network depends on the patches alone.
    Those of 128 to 255 voxels get 6 stages, 64 to 127 get 5, and 32 to 63 get 4, if voxels are cubes.

    Source: nnU-Net's `ResEncUNetPlanner` and `get_pool_and_conv_props`; Isensee et al. 2024 (arXiv:2404.09556).
    """
    features = [min(320, width * 2**stage) for stage in range(stages)]
    arguments = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6][:stages],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    function = "dynamic_network_architectures.building_blocks.residual_encoders.ResidualEncoder"
    layers = tuple(f"stages.{stage}" for stage in range(stages))
    return VolumeNetwork(function, "input_channels", arguments, tuple(features), layers)


NETWORKS: dict[str, VolumeNetwork] = {
    "monai/resnet10_quarter": _resnet(10, 128, 0.25),
    "monai/resnet10": _resnet(10, 512),
    "monai/resnet18": _resnet(18, 512),
    "monai/resnet34": _resnet(34, 512),
    "monai/resnet50": _resnet(50, 2048),
    "monai/densenet121": VolumeNetwork(
        "monai.networks.nets.DenseNet121", "in_channels", {"spatial_dims": 3, "out_channels": 1},
        (256, 512, 1024, 1024),
        (*(f"features.denseblock{block}" for block in (1, 2, 3)), "class_layers.relu"),
        "features.relu0", "class_layers.out",
    ),
    "monai/swin_unetr": _swin_unetr(24),
    "monai/swin_unetr_48": _swin_unetr(48),
    "nnunet/resenc": _residual_encoder(6),
    "nnunet/resenc_5stages": _residual_encoder(5),
    "nnunet/resenc_4stages": _residual_encoder(4),
    "nnunet/resenc_4stages_quarter": _residual_encoder(4, 8),
}  # fmt: skip
"""The networks that `model.backbone` can name if `data.dimensions` is 3."""


def build_volume_network(name: str, channels: int) -> tuple[nn.Module, int]:
    """Return a network as its library initialises it, (B, C, X, Y, Z) -> features or feature maps, and their width.

    nnU-Net's is initialised as nnU-Net does, except that residual branches do not start with 0: that would make the
    randomly initialised encoder too weak a control.

    Raises:
        SettingsError: there is no such network, or its library is not installed.
    """
    if name not in NETWORKS:
        raise SettingsError(_unknown(name))
    network = NETWORKS[name]
    for library in (network.library, network.also):
        if library and not importlib.util.find_spec(library):
            raise SettingsError(
                f"model.backbone {name} needs {library.replace('_', '-')}; pip install medmoco[volumes]"
            )
    build = _imported(network.function)
    given = {key: _imported(value) if key in TO_IMPORT and value else value for key, value in network.arguments.items()}
    net: nn.Module = build(**{network.channels: channels}, **given)
    if network.classifier:
        net.set_submodule(network.classifier, nn.Identity())
    if name.startswith("nnunet/"):
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        net.apply(InitWeights_He(1e-2))
    return net, network.widths[-1]


def pooled(maps: Tensor | list[Tensor]) -> Tensor:
    """Return features (B, F) from features, from maps (B, F, X, Y, Z), or from those of all stages."""
    deepest = maps[-1] if isinstance(maps, list) else maps
    return deepest.mean((2, 3, 4)) if deepest.ndim == 5 else deepest


def pooled_of_stages(net: nn.Module, name: str, stages: int, volumes: Tensor) -> Tensor:
    """Return the pooled maps of the last `stages` stages of a network, joined, (B, C, X, Y, Z) -> (B, F)."""
    return torch.cat([pooled(one) for one in maps_of_stages(net, name, volumes, stem=False)[-stages:]], 1)


def maps_of_stages(net: nn.Module, name: str, volumes: Tensor, *, stem: bool = True) -> list[Tensor]:
    """Return the maps of a network's stages, finest first, (B, C, X, Y, Z) -> (B, F_i, X / s_i, Y / s_i, Z / s_i).

    Args:
        net: The network.
        name: Its name.
        volumes: Its input.
        stem: Start with the map before the first stage, if the network has one of another size.
    """
    return maps_of_layers(net, layers_of(name, stem=stem), volumes)


def layers_of(name: str, *, stem: bool = True) -> list[str]:
    """Return the layers of a network whose outputs are the maps of its stages; none if it returns the maps itself."""
    network = NETWORKS[name]
    return [network.stem, *network.layers] if stem and network.stem else [*network.layers]


def maps_of_layers(net: nn.Module, layers: Sequence[str], volumes: Tensor) -> list[Tensor]:
    """Return the outputs of some layers of a network; if none are named, the network's own list of maps.

    What a layer returns is seen by a hook, so that networks of any library keep their own code and names.
    """
    maps: list[Tensor] = []
    hooks = [
        net.get_submodule(layer).register_forward_hook(lambda _, __, output: maps.append(output)) for layer in layers
    ]
    try:
        outputs = net(volumes)
    finally:
        for hook in hooks:
            hook.remove()
    return maps or list(outputs)


def named_as_built(model: Mapping[str, Any]) -> str | None:
    """Return the `model.backbone` of a network for volumes from its "function" and "arguments", as read from JSON.

    It may have a classifier. None if it is another network.
    """

    def same(name: str, value: Any) -> bool:
        return name in _OF_CLASSIFIERS or json.loads(json.dumps(value)) == model["arguments"].get(name)

    for name, network in NETWORKS.items():
        built_so = network.function == model.get("function")
        if built_so and all(same(*argument) for argument in network.arguments.items()):
            return name
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _unknown(name: str) -> str:
    """Return why a name is refused, with the names that are not."""
    close = difflib.get_close_matches(name, NETWORKS, n=1) or difflib.get_close_matches(f"monai/{name}", NETWORKS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if name.startswith("nnunet/resenc"):
        hint = "; ResEncM, ResEncL and ResEncXL have the same network, nnunet/resenc"
    return (
        f"model.backbone '{name}' is not a network for volumes (data.dimensions 3){hint}\n"
        f"The networks are: {', '.join(NETWORKS)}"
    )
