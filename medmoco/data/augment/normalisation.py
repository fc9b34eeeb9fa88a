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
        views: (B, C, S, S), uint8 or uint16, or several views concatenated, (B, V * C, S, S).
        settings: Mean and standard deviation as fractions of white, for all channels or for each.
        device: Device of the model.
        channels_last: Memory layout of the result.

    Returns:
        The same as float32.
    """
    white = 255.0 if views.dtype == torch.uint8 else 65535.0
    layout = torch.channels_last if channels_last else torch.contiguous_format
    floats = views.to(device, non_blocking=True).to(torch.float32)
    if isinstance(settings.mean, tuple) or isinstance(settings.std, tuple):
        factor, shift = (each.to(device) for each in _by_channel(settings, white, floats.shape[1]))
        return floats.mul_(factor).sub_(shift).contiguous(memory_format=layout)
    return floats.mul_(1 / (white * settings.std)).sub_(settings.mean / settings.std).contiguous(memory_format=layout)


def _by_channel(settings: Normalisation, white: float, channels: int) -> list[Tensor]:
    """Return factor and shift, (C, 1, 1), repeated if several views are concatenated."""
    mean, std = (torch.tensor(value, dtype=torch.float64).reshape(-1) for value in (settings.mean, settings.std))
    both = torch.broadcast_tensors(1 / (white * std), mean / std)
    return [values.repeat(channels // len(values)).float()[:, None, None] for values in both]
