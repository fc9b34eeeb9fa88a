from __future__ import annotations

import copy
import doctest
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from medmoco.config import MethodSettings, ModelSettings
from medmoco.errors import SettingsError
from medmoco.models import moco
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import MoCo, batch_negatives, create_moco, info_nce, similarities


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def make_moco(queue_size: int = 10, **options: Any) -> MoCo:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    settings = {"embedding_dim": 4, "projector": nn.Identity(), "key_momentum": 0.9, "seed": 0, **options}
    return MoCo(backbone, queue_size, **settings)


def make_numbered(queue_size: int = 10) -> MoCo:
    model = make_moco(queue_size)
    model.register_buffer("queue_numbers", torch.full((queue_size,), -1, dtype=torch.int64))
    return model


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


def plain_loss(q: torch.Tensor, k: torch.Tensor, others: list[list[torch.Tensor]], temperature: float) -> float:
    """InfoNCE by loops; each query has negatives of its own."""
    total = 0.0
    for i in range(len(q)):
        own = math.exp(float(q[i] @ k[i]) / temperature)
        total -= math.log(own / (own + sum(math.exp(float(q[i] @ other) / temperature) for other in others[i])))
    return total / len(q)


def test_compare__leaves_out_keys_of_the_querys_own_number() -> None:
    torch.manual_seed(2)
    q, k = unit(4, 4), unit(4, 4)
    model = make_numbered(6).double()
    model.queue_numbers.copy_(torch.tensor([5, 1, 1, 7, -1, 3]))
    negatives = model.queue_negatives(torch.tensor([1, 5, 2, 3]))
    left = [
        [model.queue[j] for j in kept]
        for kept in ([0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    ]  # fmt: skip
    loss = info_nce(*model.compare(q, k, negatives))
    assert float(loss) == pytest.approx(plain_loss(q, k, left, 0.2), rel=1e-12)


def test_batch_negatives__are_the_other_keys_of_other_numbers() -> None:
    torch.manual_seed(2)
    q, k = unit(4, 4), unit(4, 4)
    numbers = torch.tensor([3, 1, 3, 2])
    model = make_moco(0).double()
    own = torch.arange(4)
    for negatives, kept in (
        (batch_negatives(k, own), ([1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2])),
        (batch_negatives(k, own, numbers, numbers), ([1, 3], [0, 2, 3], [1, 3], [0, 1, 2])),
    ):
        left = [[k[j] for j in others] for others in kept]
        assert float(info_nce(*model.compare(q, k, negatives))) == pytest.approx(plain_loss(q, k, left, 0.2), rel=1e-12)


def test_compare__where_every_key_is_left_out_there_is_nothing_to_learn() -> None:
    q = functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    model = make_numbered()
    model.queue_numbers.zero_()
    loss = info_nce(*model.compare(q, q.detach(), model.queue_negatives(torch.zeros(3, dtype=torch.int64))))
    loss.backward()
    assert float(loss.detach()) == 0
    assert q.grad is not None
    assert not q.grad.any()


def test_enqueue__numbers_go_where_their_keys_go() -> None:
    model = make_numbered(10)
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
    model.predictor = predictor
    views = [torch.randn(3, 1, 4, 4) for _ in range(2)]
    for view, q in zip(views, model.branches()(views)[0], strict=True):
        torch.testing.assert_close(q, functional.normalize(predictor(model.query_encoder(view)), dim=1))
    torch.testing.assert_close(model.embed_keys(views[0]), functional.normalize(model.query_encoder(views[0]), dim=1))
    assert {id(p) for p in model.branches().parameters()} == {
        id(p) for part in (model.query_encoder, predictor) for p in part.parameters()
    }


def _by_loops(model: MoCo, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[float], list[torch.Tensor]]:
    """Algorithm 1 of the paper with a list of keys as its queue; return losses and that list, the oldest first."""
    query_encoder, key_encoder = copy.deepcopy(model.query_encoder), copy.deepcopy(model.key_encoder)
    optimizer = torch.optim.SGD(query_encoder.parameters(), 0.5)
    queue, losses = [key.clone() for key in model.queue], []
    for query_views, key_views in batches:
        with torch.no_grad():
            for key, query in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
                key.copy_(model.key_momentum * key + (1 - model.key_momentum) * query)
            k = [functional.normalize(key_encoder(view[None])[0], dim=0) for view in key_views]
        loss = torch.zeros((), dtype=torch.float64)
        for view, own in zip(query_views, k, strict=True):
            q = functional.normalize(query_encoder(view[None])[0], dim=0)
            logits = torch.stack([torch.dot(q, other) for other in [own, *queue]]) / model.temperature
            loss = loss - torch.log_softmax(logits, 0)[0] / len(k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = [*queue, *k][-len(model.queue) :]
        losses.append(float(loss.detach()))
    return losses, queue


def test_moco__forward_is_the_papers_algorithm_in_anybodys_loop() -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(4, 1, 4, 4).double(), torch.randn(4, 1, 4, 4).double()) for _ in range(5)]
    model = make_moco(10, projector="mlp", feature_dim=4).double()
    expected, queue = _by_loops(model, batches)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    found = []
    for query_views, key_views in batches:
        loss = model(query_views, key_views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found)) == 5
    oldest_first = torch.roll(model.queue, -int(model.pointer), 0)
    torch.testing.assert_close(oldest_first, torch.stack(queue))


def test_moco__forward_puts_shuffled_keys_back_and_changes_nothing_in_eval_mode() -> None:
    views = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    model = make_moco()
    with torch.no_grad():
        model.query_encoder.backbone[1].weight.add_(1.0)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model(*views)
    torch.testing.assert_close(model(*views, shuffle=torch.randperm(6)), loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_moco__forward_without_a_queue_takes_the_other_keys_of_the_batch() -> None:
    views = torch.randn(4, 1, 4, 4).double(), torch.randn(4, 1, 4, 4).double()
    model = make_moco(0).double()
    q, k = (functional.normalize(model.query_encoder(own), dim=1).detach() for own in views)
    others = [[k[j] for j in range(4) if j != i] for i in range(4)]
    assert float(model(*views).detach()) == pytest.approx(plain_loss(q, k, others, 0.2), rel=1e-12)


def test_moco__knows_the_width_of_timms_features_or_asks_for_it() -> None:
    backbone = nn.Linear(3, 7)
    with pytest.raises(SettingsError, match="pass feature_dim"):
        MoCo(backbone, 8)
    backbone.num_features = 7  # type: ignore[assignment]
    torch.manual_seed(0)
    one = MoCo(backbone, 8, seed=3).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(value, one[name]) for name, value in MoCo(backbone, 8, seed=3).state_dict().items())
    assert one["queue"].shape == (8, 128)


def test_moco__its_example_runs() -> None:
    assert doctest.testmod(moco).failed == 0
    assert doctest.testmod(moco).attempted > 5


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
