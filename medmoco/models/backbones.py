"""Create encoders by name, with a given number of input channels and a known feature width."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError, without_names
from medmoco.models.interop.naming import VARIANTS, has_conv_stem, timm_model
from medmoco.models.interop.preparation import preparation_of
from medmoco.models.interop.schemes import Preparation
from medmoco.models.interop.state_dict_matching import fit
from medmoco.models.interop.state_dicts import read_contents
from medmoco.models.networks.conv_stem import conv_stem
from medmoco.models.networks.volumes import NETWORKS, build_volume_network, named_as_built, pooled, pooled_of_stages
from medmoco.utils.rng import WEIGHTS, hashed

# Some 2-D networks of MONAI: class names, and arguments other than the input channels.
MONAI: dict[str, tuple[str, dict[str, int]]] = {
    "densenet121": ("DenseNet121", {"spatial_dims": 2, "out_channels": 1}),
    "seresnet50": ("SEResNet50", {"spatial_dims": 2, "num_classes": 1}),
}

_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 299, 384, 512)  # to suggest one that is large enough


class Backbone(nn.Module):
    """An encoder before the projector.

    Attributes:
        name: Name as in `model.backbone`.
        feature_dim: Width F of the features.
        net: The network of timm, MONAI or nnU-Net itself, with their names in its state dict.
        stages: Number of last stages that the features come from, see `evaluate.stages`.
        fixed_size: The only side of a view, in pixels, that it accepts; None if it accepts any.
        channels: Number of input channels.
        dimensions: 2 for images, 3 for volumes.
        start: Description of the weights that `create_backbone` loaded, one line; None if they are random.
        preparation: How images were prepared for these weights by their source; None if they are random.
    """

    start: str | None = None
    preparation: Preparation | None = None

    def __init__(
        self,
        name: str,
        net: nn.Module,
        feature_dim: int,
        fixed_size: int | None = None,
        channels: int = 1,
        stages: int = 1,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dimensions = dimensions
        self.fixed_size = fixed_size
        self.name = name
        self.net = net
        self.stages = stages
        self.feature_dim = feature_dim + sum(_earlier_widths(name, net, stages, dimensions))
        self._last_dim = feature_dim

    def of_last_stage(self) -> Backbone:
        """Return an encoder with the same network and only the features of its last stage."""
        last = Backbone(self.name, self.net, self._last_dim, self.fixed_size, self.channels, dimensions=self.dimensions)
        return last.train(self.training)

    def extra_repr(self) -> str:
        """Return what the layers do not show: two names may differ only in the number of attention heads."""
        stages = f", stages={self.stages}" if self.stages > 1 else ""
        return f"{self.name}, feature_dim={self.feature_dim}{stages}"

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, (B, C, H, W) or (B, C, X, Y, Z) -> (B, F)."""
        net: Any = self.net
        if self.stages == 1:
            features: Tensor = net(images)
            return pooled(features) if self.dimensions == 3 else features
        if self.dimensions == 3:
            return pooled_of_stages(net, self.name, self.stages, images)
        last, maps = net.forward_intermediates(images, indices=self.stages, norm=True)
        earlier = [one.mean((2, 3)) for one in maps[:-1]]  # the last is what `last` was made from
        return torch.cat([*earlier, net.forward_head(last)], 1)


def _earlier_widths(name: str, net: nn.Module, stages: int, dimensions: int) -> Sequence[int]:
    """Return the widths of the last `stages` stages of a network without the last of all.

    Raises:
        SettingsError: the network has no stages, or fewer.
    """
    if stages == 1:
        return []
    widths: Sequence[int]
    if dimensions == 3:
        widths = NETWORKS[name].widths
    elif hasattr(net, "forward_intermediates") and hasattr(net, "forward_head"):
        widths = [stage["num_chs"] for stage in getattr(net, "feature_info", [])]
    else:
        raise SettingsError(f"evaluate.stages {stages}: {name} gives only its last features; set it to 1")
    if stages > len(widths):
        raise SettingsError(f"evaluate.stages {stages}: {name} has only {len(widths)} stages")
    return widths[-stages:-1]


def create_backbone(
    model: ModelSettings, *, seed: int, size: int, channels: int = 1, stages: int = 1, dimensions: int = 2
) -> Backbone:
    """Return an encoder whose random weights depend only on the seed.

    Args:
        model: Settings with its name, and weights to initialise from.
        seed: Seed of the run.
        size: Side of the views, in pixels, needed by transformers.
        channels: Number of input channels, see `data.channels`.
        stages: Number of last stages that the features come from, see `evaluate.stages`.
        dimensions: 2 for images, 3 for volumes, see `data.dimensions`.

    Raises:
        SettingsError: no library has a network of that name, or it has fewer stages.
        CheckpointError: the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashed(seed, WEIGHTS)[0] >> 1))
        backbone = _create(model.backbone, size, channels, stages, dimensions)
    if model.init:
        backbone.start = load_weights(backbone, model.init)
    return backbone


def named_as_exported(model: Mapping[str, Any]) -> str:
    """Return the `model.backbone` of the network that an export's preprocessing.json describes under "model".

    Raises:
        KeyError, StopIteration: it describes none.
    """
    if volume_network := named_as_built(model):
        return volume_network
    if model["library"] == "monai":
        return next(f"monai/{name}" for name, (network, _) in MONAI.items() if network == model["name"])
    arguments, stem = model["arguments"].items(), "conv_stem" in model
    variants = (
        variant
        for variant, (plain, other) in VARIANTS.items()
        if plain == model["name"] and has_conv_stem(variant) == stem and other.items() <= arguments
    )
    return next(variants, model["name"])


def _create(name: str, size: int, channels: int, stages: int, dimensions: int) -> Backbone:
    net, width, fixed_size = build_network(name, size, channels, dimensions)
    if dimensions == 2 and not name.startswith("monai/"):
        _wake_branches(net)
    return Backbone(name, net, width, fixed_size, channels, stages, dimensions)


def build_network(name: str, size: int, channels: int, dimensions: int = 2) -> tuple[nn.Module, int, int | None]:
    """Return a network as its library initialises it, the width of its features, and the only size it accepts, if any.

    Raises:
        SettingsError: no library has a network of that name, or it cannot be created for this size.
    """
    if dimensions == 3:
        return *build_volume_network(name, channels), None
    family, _, rest = name.rpartition("/")
    if name in NETWORKS and rest not in MONAI:
        raise SettingsError(
            f"model.backbone '{name}' is a network for volumes; set data.dimensions=3, or choose one for images"
        )
    if family == "monai":
        if rest not in MONAI:
            raise SettingsError(f"model.backbone '{name}' is unknown; MONAI networks are: {', '.join(sorted(MONAI))}")
        from monai.networks import nets  # not at the top, because importing MONAI takes seconds

        class_name, arguments = MONAI[rest]
        network: nn.Module = getattr(nets, class_name)(**arguments, in_channels=channels)
        return network, _drop_classifier(network), None
    plain, other = timm_model(name)
    base, _, tag = plain.partition(".")
    if tag and timm.is_model(base):
        raise SettingsError(
            f"model.backbone '{name}': the tag .{tag} refers to weights of timm, which medmoco does not load.\n"
            f"Use {base}. To start from those weights, save their state dict to a file and set model.init to it\n"
            "(docs/import.md)."
        )
    if not timm.is_model(plain) or "/" in plain:
        close = difflib.get_close_matches(name, [*VARIANTS, *timm.list_models()], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise SettingsError(
            f"model.backbone '{name}' is not a timm model{hint}\n'medmoco models PATTERN' lists the names."
        )
    pretrained = timm.models.get_pretrained_cfg(plain, allow_unregistered=True)
    # Transformers with a fixed grid of patches need the size of the views.
    fixed_size: dict[str, Any] = {"img_size": size} if pretrained and pretrained.fixed_input_size else {}
    stem: dict[str, Any] = {"embed_layer": conv_stem} if has_conv_stem(name) else {}
    own = {**other, **fixed_size, **stem}
    try:
        net: Any = timm.create_model(plain, pretrained=False, in_chans=channels, num_classes=0, **own)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"model.backbone {name} cannot be created for {channels} channels and views.size {size}:\n"
            f"{without_names(error)}\nChoose another size, such as 224, or another model.backbone."
        ) from None
    width = getattr(net, "head_hidden_size", net.num_features)  # some have layers between pooling and classifier
    return net, width, fixed_size.get("img_size")


def check_size(backbone: Backbone, size: int, key: str = "views.size") -> None:
    """Check that a network on the CPU accepts views of a size: some reduce small views to nothing.

    Raises:
        SettingsError: it does not; names the setting and the smallest common size that works.
    """
    # The meta device computes only shapes, which is free. Networks that fail there are then tried on the CPU.
    if not _misfit(backbone, size, "meta") or not (reason := _misfit(backbone, size, "cpu")):
        return
    larger = [side for side in _SIZES if side > size and not backbone.fixed_size]
    enough = next((side for side in larger if not _misfit(backbone, side, "meta")), None)
    raise SettingsError(
        f"model.backbone {backbone.name} does not accept {_views_of(size, backbone.dimensions)} ({key}):\n{reason}\n"
        f"{f'Raise {key} ({enough} is enough)' if enough else f'Choose another {key}'}, or choose another"
        " model.backbone."
    )


def _views_of(size: int, dimensions: int) -> str:
    sides = " x ".join([str(size)] * dimensions)
    return f"volumes of {sides} voxels" if dimensions == 3 else f"images of {sides} pixels"


def _misfit(backbone: Backbone, size: int, device: str) -> str | None:
    """Return why a network fails on an image; None if it returns features of the expected width."""
    state = {name: value.to(device) for name, value in chain(backbone.named_parameters(), backbone.named_buffers())}
    images = torch.zeros(2, backbone.channels, *[size] * backbone.dimensions, device=device)
    training = backbone.training
    try:
        with torch.no_grad():
            # nnU-Net's networks hold layers under two names; with tie_weights, they would keep the tensors of `state`.
            features = torch.func.functional_call(backbone.eval(), state, (images,), tie_weights=False)
    except Exception as error:  # anything that the network's own code may raise
        return without_names(error)
    finally:
        backbone.train(training)
    expected = (len(images), backbone.feature_dim)
    if not isinstance(features, Tensor) or features.shape != expected:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        return f"it returns {shape} for {len(images)} images instead of {expected}"
    return None


def _wake_branches(net: nn.Module) -> None:
    """Initialise every batch norm with scale 1, as in torchvision's ResNets, which the published MoCo trains.

    timm initialises the last one of each residual branch with 0. That disables the branches at first, and would make
    the randomly initialised encoder too weak a control.
    """
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.any():
            nn.init.ones_(layer.weight)


def fix_patches(backbone: Backbone) -> None:
    """Freeze a transformer's patch projection, in place.

    Source: Chen et al. 2021 (arXiv:2104.02057), section 4: a random projection is sufficient, and spikes of its
    gradient make training unstable.

    Raises:
        SettingsError: the network has no patch projection that is a single layer.
    """
    projection = getattr(getattr(backbone.net, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        raise SettingsError(
            f"model.fixed_patches: {backbone.name} does not project patches with a single layer, as plain transformers"
            " do;\nset it to false"
        )
    projection.requires_grad_(False)


def _drop_classifier(net: nn.Module) -> int:
    """Replace the network's final linear layer with an identity and return its input width."""
    name, layer = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features


def load_weights(backbone: Backbone, file: Path) -> str:
    """Load the encoder of a weights file in any known format, checking every key.

    Returns:
        A line that describes the loaded and the omitted tensors.

    Raises:
        CheckpointError: the file cannot be read or does not fit this network; nothing is loaded.
    """
    imported = fit(read_contents(file), backbone.name, backbone.net.state_dict())
    backbone.net.load_state_dict(imported.state)
    backbone.preparation = preparation_of(file, imported.found, backbone.name)
    return f"weights file {file.name}: {imported.summary()}"
