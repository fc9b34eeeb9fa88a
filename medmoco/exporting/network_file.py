"""Build the segmentation network that "model" in preprocessing.json describes.

    import json, torch, network
    net = network.network(json.load(open("preprocessing.json"))["model"])
    net.load_state_dict(torch.load("model.pt", weights_only=True))
    scores = net.eval()(images)  # (B, C, S, ...) -> (B, 1 + classes, S, ...)

The MONAI bundle of a segmenter contains this file, and any project may copy it (Apache-2.0). It needs PyTorch, MONAI,
and the library of the encoder: timm, MONAI or dynamic-network-architectures. medmoco trains the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medmoco.exporting.reload import plain_network
from medmoco.models.maps import Level
from medmoco.models.networks.volumes import maps_of_layers
from medmoco.segmentation.networks import NnunetDecoder, UNetDecoder


def network(model: Mapping[str, Any]) -> nn.Module:
    """Return the network with random weights; its state dict has the names of the exported one."""
    encoder, dimensions, scores = plain_network(dict(model)), model["dimensions"], model["scores"]
    if "levels" not in model:
        return Network(encoder, NnunetDecoder(encoder, scores), model["layers"])
    levels = [Level(*level) for level in model["levels"]]
    return Network(encoder, UNetDecoder(levels, dimensions, scores, model["channels"]), model["layers"])


class Network(nn.Module):
    """An encoder under a decoder.

    Attributes:
        backbone: The encoder.
        decoder: Image and maps, finest first, to scores.
        layers: The layers of the encoder whose outputs are its maps; none if it returns them itself.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (log-odds up to a constant) of the background and each class."""
        net: Any = self.backbone
        if hasattr(net, "forward_intermediates"):  # timm
            maps = net.forward_intermediates(images, norm=True, intermediates_only=True)
        else:
            maps = maps_of_layers(net, self.layers, images)
        scores: Tensor = self.decoder([images, *maps])
        return scores
