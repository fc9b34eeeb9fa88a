from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from medmoco.models.moco import MoCo
from medmoco.training.contrast import meters


def test_meters__equal_plain_loops() -> None:
    torch.manual_seed(0)
    q, k = functional.normalize(torch.randn(6, 4), dim=1), functional.normalize(torch.randn(6, 4), dim=1)
    queue = functional.normalize(torch.randn(9, 4), dim=1)
    positive, negative = (q * k).sum(1) / 0.2, q @ queue.T / 0.2
    model = MoCo(nn.Identity(), queue, key_momentum=0.9, temperature=0.2)
    found = meters(q, positive, model)
    right = sum(all(positive[i] > other for other in negative[i]) for i in range(6)) / 6
    assert float(found["accuracy"]) == pytest.approx(right)
    assert float(found["positive_similarity"]) == pytest.approx(sum(float(q[i] @ k[i]) for i in range(6)) / 6, abs=1e-6)
    singular = np.linalg.svd(q.numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert float(found["effective_rank"]) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_meters__tell_collapse_from_spread() -> None:
    torch.manual_seed(0)
    spread = functional.normalize(torch.randn(512, 16), dim=1)
    collapsed = functional.normalize(torch.ones(512, 16) + 1e-4 * torch.randn(512, 16), dim=1)
    model = MoCo(nn.Identity(), torch.zeros(3, 16), key_momentum=0.9, temperature=0.2)
    others = torch.zeros(512), model
    assert float(meters(spread, *others)["embedding_std"]) == pytest.approx(1, abs=0.05)
    assert float(meters(collapsed, *others)["embedding_std"]) < 0.01
    assert float(meters(spread, *others)["effective_rank"]) > 15
    assert float(meters(collapsed, *others)["effective_rank"]) < 1.2
