from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from medmoco.config import MethodSettings, ModelSettings
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import MoCo, create_moco, info_nce, similarities


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def make_moco(queue_size: int = 10, **options: Any) -> MoCo:
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
    model.update_key_encoder()
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
    torch.testing.assert_close(model.hardest_negative(q)[0], model.compare(q, k)[1].amax(1))


def plain_loss(q: torch.Tensor, k: torch.Tensor, others: list[list[torch.Tensor]], temperature: float) -> float:
    """InfoNCE by loops; each query has negatives of its own."""
    total = 0.0
    for i in range(len(q)):
        own = math.exp(float(q[i] @ k[i]) / temperature)
        total -= math.log(own / (own + sum(math.exp(float(q[i] @ other) / temperature) for other in others[i])))
    return total / len(q)


def test_compare__leaves_out_keys_of_the_querys_own_number() -> None:
    torch.manual_seed(2)
    q, k, queue = unit(4, 8), unit(4, 8), unit(6, 8)
    model = MoCo(nn.Identity(), queue, key_momentum=0.9, temperature=0.2, numbered=True).double()
    model.queue_numbers.copy_(torch.tensor([5, 1, 1, 7, -1, 3]))
    numbers = torch.tensor([1, 5, 2, 3])
    blocked = model.blocked(numbers)
    left = [[queue[j] for j in kept] for kept in ([0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])]
    loss = info_nce(*model.compare(q, k, blocked=blocked))
    assert float(loss) == pytest.approx(plain_loss(q, k, left, 0.2), rel=1e-12)
    nearest, count = model.hardest_negative(q, blocked=blocked)
    assert count.tolist() == [4, 5, 6, 5]
    expected = [max(float(q[i] @ other) for other in left[i]) / 0.2 for i in range(4)]
    assert nearest.tolist() == pytest.approx(expected, rel=1e-12)


def test_compare__where_every_key_is_left_out_there_is_nothing_to_learn() -> None:
    q = functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    model = make_moco(numbered=True)
    model.queue_numbers.zero_()
    loss = info_nce(*model.compare(q, q.detach(), blocked=model.blocked(torch.zeros(3, dtype=torch.int64))))
    loss.backward()
    assert float(loss.detach()) == 0
    assert q.grad is not None
    assert not q.grad.any()


def test_enqueue__numbers_go_where_their_keys_go() -> None:
    model = make_moco(queue_size=10, numbered=True)
    for step in range(5):
        numbers = torch.arange(7) + 7 * step
        model.enqueue(numbers[:, None].expand(-1, 4).float(), numbers)
        filled = model.queue_numbers >= 0
        assert model.queue[filled, 0].tolist() == model.queue_numbers[filled].tolist()
    assert sorted(model.queue_numbers.tolist()) == list(range(25, 35))
    model.enqueue(torch.arange(13.0)[:, None].expand(-1, 4), torch.arange(13))
    assert sorted(model.queue_numbers.tolist()) == list(range(3, 13))


def test_enqueue__without_a_queue_nothing_is_kept() -> None:
    model = make_moco(queue_size=0)
    model.enqueue(torch.randn(5, 4))
    assert model.queue.shape == (0, 4)
    assert int(model.pointer) == 0


def test_branches__predict_after_the_query_encoder_alone() -> None:
    predictor = nn.Linear(4, 4)
    model = make_moco()
    model = MoCo(model.query_encoder, model.queue, key_momentum=0.9, temperature=0.2, predictor=predictor)
    views = [torch.randn(3, 1, 4, 4) for _ in range(2)]
    for view, q in zip(views, model.branches()(views)[0], strict=True):
        torch.testing.assert_close(q, functional.normalize(predictor(model.query_encoder(view)), dim=1))
    torch.testing.assert_close(model.embed_keys(views[0]), functional.normalize(model.query_encoder(views[0]), dim=1))
    assert {id(p) for p in model.branches().parameters()} == {
        id(p) for part in (model.query_encoder, predictor) for p in part.parameters()
    }


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
