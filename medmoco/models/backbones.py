"""Name -> encoder with one input channel and a known feature width."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medmoco.config import ModelSettings
from medmoco.data.order import WEIGHTS, hashed
from medmoco.errors import CheckpointError, SettingsError, first_line

# Some 2-D networks of MONAI, by the name and with the arguments they have there.
_MONAI: dict[str, tuple[str, dict[str, int]]] = {
    "densenet121": ("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}),
    "seresnet50": ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, "num_classes": 1}),
}


class Backbone(nn.Module):
    """An encoder before the projector.

    Attributes:
        name: As in `model.backbone`.
        feature_dim: Width F of the features.
        net: The plain timm or MONAI network; its state dict has their names.
        fixed_size: The only side of a view in pixels that it takes; None if it takes any.
    """

    def __init__(self, name: str, net: nn.Module, feature_dim: int, fixed_size: int | None = None) -> None:
        super().__init__()
        self.fixed_size = fixed_size
        self.name = name
        self.net = net
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, (B, 1, H, W) -> (B, F)."""
        features: Tensor = self.net(images)
        return features


def create_backbone(model: ModelSettings, *, seed: int, size: int) -> Backbone:
    """Build an encoder whose first weights depend on the seed alone.

    Args:
        model: Name, and weights to start from.
        seed: Of the run.
        size: Side of the views in pixels, which transformers need to know.

    Raises:
        SettingsError: no library has that name.
        CheckpointError: the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashed(seed, WEIGHTS)[0] >> 1))
        backbone = _create(model.backbone, size)
    if model.weights:
        load_weights(backbone, model.weights)
    return backbone


def _create(name: str, size: int) -> Backbone:
    family, _, rest = name.rpartition("/")
    if family == "monai":
        if rest not in _MONAI:
            raise SettingsError(f"model.backbone '{name}' is unknown; MONAI networks: {', '.join(sorted(_MONAI))}")
        from monai.networks import nets  # here, because importing MONAI takes seconds

        class_name, arguments = _MONAI[rest]
        network: nn.Module = getattr(nets, class_name)(**arguments)
        return Backbone(name, network, _drop_classifier(network))
    if family or not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has the names"
        raise SettingsError(f"model.backbone '{name}' is no timm model; {hint}")
    pretrained = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    # Transformers with a fixed grid of patches must be told the size of the views.
    fixed_size: dict[str, Any] = {"img_size": size} if pretrained and pretrained.fixed_input_size else {}
    net: Any = timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, **fixed_size)
    _wake_branches(net)
    width = getattr(net, "head_hidden_size", net.num_features)  # some have layers between pooling and classifier
    return Backbone(name, net, width, fixed_size=fixed_size.get("img_size"))


def _wake_branches(net: nn.Module) -> None:
    """Start every batch norm at scale 1, as in torchvision's ResNets, which the published MoCo trains.

    timm starts the last one of each residual branch at 0. That silences the branches at first, which also makes the
    untrained encoder a control too easy to beat.
    """
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.any():
            nn.init.ones_(layer.weight)


def _drop_classifier(net: nn.Module) -> int:
    """Replace the network's one final linear layer by nothing and return its width."""
    name, layer = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read tensors from .safetensors or .pth, never by unpickling objects.

    Raises:
        CheckpointError: the file is absent, damaged or holds more than tensors and plain values.
    """
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"weights file {file.name} does not exist") from None
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"weights file {file.name} cannot be read: {first_line(error)}") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for anything that is not a tensor or plain value
        raise CheckpointError(
            f"weights file {file.name} holds objects besides tensors, which could run code: {type(error).__name__}\n"
            "Save its state dict alone, best as .safetensors."
        ) from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"weights file {file.name} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def load_weights(backbone: Backbone, file: Path) -> None:
    """Load a state dict with plain timm or MONAI names, strict about every key but a classifier's.

    A three-channel first layer is summed over its channels: the same response to a gray image fed three times.

    Raises:
        CheckpointError: names or shapes differ; counts and examples are named.
    """
    own = backbone.net.state_dict()
    state = {
        key: _to_one_channel(value, own[key]) if key in own else value for key, value in read_state_dict(file).items()
    }
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(key for key in state.keys() - own.keys() if not _is_classifier(key))
    reshaped = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or reshaped:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        found = [f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in kinds if keys]
        raise CheckpointError(f"weights file {file.name} does not fit {backbone.name}: " + "; ".join(found))
    backbone.net.load_state_dict({key: state[key] for key in own})


def _is_classifier(key: str) -> bool:
    return key.rpartition(".")[0] in {"fc", "classifier", "head", "head.fc"}


def _to_one_channel(weight: Tensor, own: Tensor) -> Tensor:
    if weight.ndim == 4 and weight.shape[1] == 3 and own.shape[1:2] == (1,):
        return weight.sum(1, keepdim=True)
    return weight
