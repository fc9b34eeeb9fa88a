from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medmoco.training.distributed import ALONE, Group
from tests.helpers.together import run_together


def _exchange(group: Group) -> dict[str, Any]:
    own = torch.arange(2.0) + 10 * group.rank
    return {
        "gather": group.gather(own).tolist(),
        "mean": group.mean(torch.tensor([float(group.rank)])).item(),
        "sent": dict(group.sent),
    }


def test_group__exchanges_tensors() -> None:
    for found in run_together(3, _exchange):
        assert found["gather"] == [0, 1, 10, 11, 20, 21]
        assert found["mean"] == 1
        assert found["sent"]["embeddings"] == 2 * 2 * 4  # two floats to each of two others


def test_group__alone_is_a_no_op() -> None:
    x, layer = torch.ones(3), nn.Linear(1, 1)
    assert ALONE.gather(x) is ALONE.mean(x) is x
    assert ALONE.wrap(layer, torch.device("cpu")) is layer
    assert ALONE.gather_trained(x, "statistics") is x
