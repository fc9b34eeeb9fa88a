"""Views to floats on the training device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Normalisation(Protocol):
    """Mean and standard deviation, from settings or an export."""

    @property
    def mean(self) -> float | tuple[float, ...]: ...  # noqa: D102 - as in the settings

    @property
    def std(self) -> float | tuple[float, ...]: ...  # noqa: D102


def to_float(views: Tensor, settings: Normalisation, device: torch.device, *, channels_last: bool) -> Tensor:
    """Move views to the device and normalise them there: (pixel / white - mean) / std.

    Args:
        views: (B, C, S, S) of images or (B, C, S, S, S) of volumes, uint8 or uint16, or several views concatenated,
            (B, V * C, ...).
        settings: Mean and standard deviation as fractions of white, for all channels or for each.
        device: Device of the model.
        channels_last: Memory layout of the result.

    Returns:
        The same as float32.
    """
    white = 255.0 if views.dtype == torch.uint8 else 65535.0
    layout = memory_layout(views.ndim - 2, channels_last=channels_last)
    floats = views.to(device, non_blocking=True).to(torch.float32)
    if isinstance(settings.mean, tuple) or isinstance(settings.std, tuple):
        factor, shift = (each.to(device) for each in _by_channel(settings, white, floats))
        return floats.mul_(factor).sub_(shift).contiguous(memory_format=layout)
    return floats.mul_(1 / (white * settings.std)).sub_(settings.mean / settings.std).contiguous(memory_format=layout)


def memory_layout(dimensions: int, *, channels_last: bool) -> torch.memory_format:
    """Return the memory layout of views and weights for images (2) or volumes (3)."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if dimensions == 3 else torch.channels_last


def _by_channel(settings: Normalisation, white: float, views: Tensor) -> list[Tensor]:
    """Return factor and shift, (C, 1, 1) or (C, 1, 1, 1), repeated if several views are concatenated."""
    mean, std = (torch.tensor(value, dtype=torch.float64).reshape(-1) for value in (settings.mean, settings.std))
    both = torch.broadcast_tensors(1 / (white * std), mean / std)
    shape = (-1, *[1] * (views.ndim - 2))
    return [values.repeat(views.shape[1] // len(values)).float().view(shape) for values in both]
