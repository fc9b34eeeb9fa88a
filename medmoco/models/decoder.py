"""The reconstruction branch: from an embedding back to its view.

Legend: B batch, D embedding, C channels, S side of a view; volumes have three sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmoco.config import DecoderSettings

_DOUBLINGS = 4
_LEAST_CHANNELS = 16


class Decoder(nn.Module):
    """A linear layer to a coarse grid, whose side transposed convolutions double repeatedly; from MONAI.

    Instance norms take no statistics over the batch, so the number of groups and processes does not matter.
    """

    def __init__(
        self, embedding_dim: int, size: int, channels: int, settings: DecoderSettings, dimensions: int = 2
    ) -> None:
        super().__init__()
        from monai.networks.nets.generator import Generator  # here, because importing MONAI takes seconds

        self.size = size
        grid = [-(-size // 2**_DOUBLINGS)] * dimensions
        widths = [max(settings.channels >> halved, _LEAST_CHANNELS) for halved in range(_DOUBLINGS)]
        self.layers = Generator(
            (embedding_dim,), (widths[0], *grid), (*widths[1:], channels), (2,) * _DOUBLINGS, num_res_units=0
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Return normalised views, (B, D) -> (B, C, S, S) or (B, C, S, S, S)."""
        views: Tensor = self.layers(embedding)
        return views[:, :, *[slice(self.size)] * (views.ndim - 2)]


def create_decoder(
    embedding_dim: int, size: int, channels: int, settings: DecoderSettings, dimensions: int = 2
) -> Decoder | None:
    """Build the decoder for views of a size and number of channels; None if it has no weight in the loss."""
    return Decoder(embedding_dim, size, channels, settings, dimensions) if settings.weight else None


def weighted_squared_error(made: Tensor, views: Tensor, weights: Tensor | None, empty_weight: float) -> Tensor:
    """Return the mean over all pixels or voxels of weight x squared error.

    Args:
        made: (B, C, S, S) or (B, C, S, S, S), the reconstruction.
        views: The same shape, normalised.
        weights: The same with one channel, from 0 for empty space to 1; None means 1 everywhere.
        empty_weight: Weight of a pixel of empty space.

    Source: grantmerz/moco, whose mean is over all pixels too, empty or not.
    """
    error = torch.square(made.to(views.dtype) - views)  # half precision ends here
    if weights is None:
        return error.mean()
    return (error * (empty_weight + (1 - empty_weight) * weights)).mean()
