from __future__ import annotations

import pytest
import torch

from medmoco.config import ViewSettings
from medmoco.data.augment.normalisation import memory_layout, to_float


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_to_float__normalises(dtype: torch.dtype, white: int) -> None:
    views = torch.tensor([[[[0, white // 5], [white // 3, white]]]]).to(dtype)
    out = to_float(views, ViewSettings(mean=0.4, std=0.2), torch.device("cpu"), channels_last=True)
    expected = (views.to(torch.float64) / white - 0.4) / 0.2
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mean", [0.4, (0.4, 0.1)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_to_float__normalises_volumes(mean: float | tuple[float, ...], channels_last: bool) -> None:
    views = torch.randint(0, 256, (2, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    out = to_float(views, ViewSettings(mean=mean, std=0.2), torch.device("cpu"), channels_last=channels_last)
    means = mean if isinstance(mean, tuple) else (mean, mean)
    for channel in (0, 1):
        expected = (views[:, channel].to(torch.float64) / 255 - means[channel]) / 0.2
        torch.testing.assert_close(out[:, channel], expected.float(), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=memory_layout(3, channels_last=channels_last))
    assert out.is_contiguous() is not channels_last


def test_memory_layout__is_one_that_tensors_of_the_dimensions_can_have() -> None:
    for dimensions in (2, 3):
        views = torch.zeros(2, 2, *[3] * dimensions)
        layout = memory_layout(dimensions, channels_last=True)
        assert views.contiguous(memory_format=layout).stride(1) == 1
        assert memory_layout(dimensions, channels_last=False) == torch.contiguous_format
