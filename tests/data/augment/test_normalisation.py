from __future__ import annotations

import pytest
import torch

from medmoco.config import ViewSettings
from medmoco.data.augment.normalisation import to_float


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_to_float__normalises(dtype: torch.dtype, white: int) -> None:
    views = torch.tensor([[[[0, white // 5], [white // 3, white]]]]).to(dtype)
    out = to_float(views, ViewSettings(mean=0.4, std=0.2), torch.device("cpu"), channels_last=True)
    expected = (views.to(torch.float64) / white - 0.4) / 0.2
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
