from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from medmoco.config import MethodSettings, ModelSettings
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import MoCo, create_moco, info_nce, similarities


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def make_moco(queue_size: int = 10, **options: float) -> MoCo:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    queue = functional.normalize(torch.randn(queue_size, 4), dim=1)
    return MoCo(encoder, queue, **{"key_momentum": 0.9, "temperature": 0.2, **options})


def test_info_nce__equals_plain_loops() -> None:
    torch.manual_seed(1)
    q, k, queue, temperature = unit(5, 8), unit(5, 8), unit(13, 8), 0.07
    total = 0.0
    for i in range(5):
        own = math.exp(sum(float(a * b) for a, b in zip(q[i], k[i], strict=True)) / temperature)
        others = [math.exp(float(torch.dot(q[i], other)) / temperature) for other in queue]
        total += -math.log(own / (own + sum(others)))
    assert float(info_nce(*similarities(q, k, queue, temperature))) == pytest.approx(total / 5, rel=1e-12)


def test_info_nce__of_equal_logits_is_chance() -> None:
    assert float(info_nce(torch.zeros(3), torch.zeros(3, 4096))) == pytest.approx(math.log(4097))


def test_info_nce__gradient_is_right() -> None:
    torch.manual_seed(1)
    k, queue = unit(3, 4), unit(7, 4)
    q = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: info_nce(*similarities(functional.normalize(x, dim=1), k, queue, 0.2)), q)


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 10, 13, 25])
def test_enqueue__wraps_at_any_batch_size(batch: int) -> None:
    model = make_moco(queue_size=10)
    model.queue.zero_()
    expected, pointer = [0.0] * 10, 0
    for step in range(7):
        numbers = [float(step * batch + i + 1) for i in range(batch)]
        for number in numbers[-10:]:
            expected[pointer] = number
            pointer = (pointer + 1) % 10
        model.enqueue(torch.tensor(numbers)[:, None].expand(-1, 4))
        assert model.queue[:, 0].tolist() == expected
        assert int(model.pointer) == pointer


def test_embed_keys__key_encoder_is_a_moving_average_without_gradient() -> None:
    model = make_moco()
    with torch.no_grad():
        for parameter in model.query_encoder.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in model.key_encoder.parameters()]
    k = model.embed_keys(torch.randn(6, 1, 4, 4), torch.arange(6))
    q = functional.normalize(model.query_encoder(torch.randn(6, 1, 4, 4)), dim=1)
    info_nce(*model.compare(q, k)).backward()
    for old, key, query in zip(before, model.key_encoder.parameters(), model.query_encoder.parameters(), strict=True):
        torch.testing.assert_close(key, 0.9 * old + 0.1 * query)
        assert key.grad is None
        assert query.grad is not None
    assert not k.requires_grad
    torch.testing.assert_close(k.norm(dim=1), torch.ones(6))


def test_embed_keys__come_back_in_the_order_of_the_queries() -> None:
    views, order = torch.randn(6, 1, 4, 4), torch.tensor([3, 1, 5, 0, 2, 4])
    straight = make_moco().embed_keys(views, torch.arange(6))
    torch.testing.assert_close(make_moco().embed_keys(views[order], order), straight)
    torch.testing.assert_close(make_moco().embed_keys(views[order], order, parts=3), straight)


def test_hardest_negative__is_the_largest_logit() -> None:
    model = make_moco()
    q, k = (functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    torch.testing.assert_close(model.hardest_negative(q), model.compare(q, k)[1].amax(1))


def test_create_moco__depends_on_the_seed_alone() -> None:
    method, model = MethodSettings(queue_size=20), ModelSettings(backbone="resnet18")
    made = []
    for noise in range(2):
        torch.manual_seed(noise)
        made.append(create_moco(create_backbone(model, seed=4, size=32), method, seed=4).state_dict())
    other = create_moco(create_backbone(model, seed=5, size=32), method, seed=5).state_dict()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["queue"], other["queue"])
    assert not torch.equal(
        made[0]["query_encoder.backbone.net.conv1.weight"], other["query_encoder.backbone.net.conv1.weight"]
    )


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp", 3)])
def test_create_moco__projector_of_v1_and_v2(kind: str, layers: int) -> None:
    method = MethodSettings(queue_size=20, projector=kind)
    model = create_moco(create_backbone(ModelSettings(backbone="resnet18"), seed=0, size=32), method, seed=0)
    assert sum(1 for _ in model.query_encoder.projector.modules() if not list(_.children())) == layers
    assert model.query_encoder(torch.randn(2, 1, 32, 32)).shape == (2, 128)
