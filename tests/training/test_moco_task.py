from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from medmoco import config
from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.pairs import plan_of
from medmoco.data.loading.sampler import StepOrder, key_order
from medmoco.errors import SettingsError
from medmoco.models.moco import MoCo, Negatives, create_moco
from medmoco.training.context import RunContext
from medmoco.training.distributed import ALONE, Group
from medmoco.training.moco_task import (
    Contrast,
    contrast_diagnostics,
    create_fitting_backbone,
    create_state,
    embedding_diagnostics,
    traffic,
)
from medmoco.training.sizes import check_sizes
from tests.helpers.together import run_together

BATCH, STEPS = 16, 4


def make_settings(*overrides: str) -> config.RunSettings:
    base = [
        "out=run", "data.manifest=m", "data.root=r", "views.size=32", "model.backbone=test_resnet",
        "method.queue_size=24", "method.batch_norm_splits=4", "method.projector=mlp_bn",
        f"train.global_batch_size={BATCH}", "train.lr=0.01", "train.device=cpu", "train.epochs=1",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


class DoubleContrast(Contrast):
    """In float64, where errors of rounding are too small to be mistaken for anything."""

    def _floats(self, views: torch.Tensor) -> torch.Tensor:
        return super()._floats(views).double()


PATIENTS = torch.arange(BATCH * STEPS) // 3


def train(group: Group, settings: config.RunSettings) -> dict[str, list[float]]:
    """Train on noise; return the mean loss of each step, what the queue holds and the running statistics."""
    torch.set_num_threads(1)
    state = create_state(RunContext(settings, group=group))
    model = state.model.double()
    assert isinstance(model, MoCo)
    task = DoubleContrast(
        model, RunContext(settings, group=group),
        numbers=None if settings.method.negatives == "all" else PATIENTS, steps=STEPS,
    )  # fmt: skip
    task.model.train()
    order, losses = StepOrder(settings.seed, BATCH * STEPS, BATCH, 1), []
    part = group.share.of(BATCH)
    for key in order.from_step(0):
        views = torch.randint(0, 256, (2, BATCH, 1, 32, 32), generator=torch.Generator().manual_seed(key.step))
        order_of_keys = torch.from_numpy(key_order(settings.seed, key.step, BATCH))
        own = [
            (views[view][order_of_keys] if shuffled else views[view])[part].to(torch.uint8)
            for view, shuffled in plan_of(settings.method, settings.decoder).views
        ]
        weights = ((views[0][part] % 256).to(torch.uint8),) if settings.decoder.weight else ()
        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64)
        for outputs in task.losses(
            Batch(own, torch.from_numpy(key.samples[part]), key.step, 0, weights=weights), measure=True
        ):
            outputs["loss"].backward()
            loss += outputs["loss"].detach()
        state.optimizer.step()
        task.after_step()
        losses.append(group.mean(loss).item())
    weights = next(model.query_encoder.parameters())
    statistics = next(buffer for name, buffer in model.key_encoder.named_buffers() if name.endswith("running_var"))
    return {
        "losses": losses,
        "queue": model.queue.flatten().tolist(),
        "pointer": [float(model.pointer)],
        "weights": weights.flatten().tolist(),
        "statistics": statistics.tolist(),
    }


def assert_equal_within_float_error(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for name in ("losses", "queue", "pointer", "weights", "statistics"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (4, []),
        (2, ["train.accumulation_steps=2"]),
    ],
)
def test_contrast__processes_and_parts_change_nothing(processes: int, overrides: list[str]) -> None:
    expected = train(ALONE, make_settings())
    for found in run_together(processes, train, make_settings(*overrides)):
        assert not isinstance(found, Exception), found
        assert_equal_within_float_error(found, expected)


OTHER_PATIENTS = ("method.negatives=other_patients", "method.symmetric=true")
V3 = (
    "method.name=moco_v3", "method.hidden_dim=32", "method.embedding_dim=16", "method.projector=mlp_2",
    "method.batch_norm_splits=1", "method.negatives=other_patients", "train.optimizer=lars",
)  # fmt: skip


AUTOENCODER = (
    "decoder={weight: 2, contrast: 0, channels: 32, empty: outside, empty_weight: 0.1}", "train.optimizer=adamw",
)  # fmt: skip
DECODER = (*AUTOENCODER, "decoder.contrast=0.5", "method.projector=mlp")


@pytest.mark.parametrize(
    ("processes", "method", "overrides"),
    [
        (2, OTHER_PATIENTS, ["train.accumulation_steps=2"]),
        pytest.param(4, V3, [], marks=pytest.mark.slow),
        pytest.param(2, DECODER, ["train.accumulation_steps=2"], marks=pytest.mark.slow),
        pytest.param(2, AUTOENCODER, [], marks=pytest.mark.slow),
    ],
)
def test_contrast__nor_where_keys_are_left_out_or_the_batch_is_the_bank(
    processes: int, method: tuple[str, ...], overrides: list[str]
) -> None:
    settings = make_settings(*method)
    expected = train(ALONE, settings)
    for found in run_together(processes, train, make_settings(*method, *overrides)):
        assert not isinstance(found, Exception), found
        assert_equal_within_float_error(found, expected)


def _v3_by_loops(settings: config.RunSettings, views: torch.Tensor) -> list[float]:
    """Two steps of v3 as its paper's algorithm 1 has them, in loops over the batch; return the losses.

    Nothing of medmoco's but the networks is used: no queue, no mask, no plan.
    """
    model = create_state(RunContext(settings)).model.double().train()
    optimizer = torch.optim.SGD(
        [*model.query_encoder.parameters(), *model.predictor.parameters()],
        settings.train.lr, 0.9, weight_decay=settings.train.weight_decay,
    )  # fmt: skip
    floats = [to_float(view, settings.views, torch.device("cpu"), channels_last=False).double() for view in views]
    found = []
    for step in range(2):
        momentum = 1 - (1 - settings.method.key_momentum) * (math.cos(math.pi * step / STEPS) + 1) / 2
        with torch.no_grad():
            for key, query in zip(model.key_encoder.parameters(), model.query_encoder.parameters(), strict=True):
                key.copy_(key * momentum + query * (1 - momentum))
            keys = [functional.normalize(model.key_encoder(view), dim=1) for view in floats]
        queries = [functional.normalize(model.predictor(model.query_encoder(view)), dim=1) for view in floats]
        loss = torch.zeros((), dtype=torch.float64)
        for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
            for i in range(BATCH):
                logits = torch.stack([torch.dot(q[i], other) for other in k]) / settings.method.temperature
                loss = loss - torch.log(torch.exp(logits[i]) / torch.exp(logits).sum()) / BATCH
        loss = 2 * settings.method.temperature * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_contrast__v3_is_that_of_its_paper() -> None:
    settings = make_settings(
        "method.name=moco_v3", "method.hidden_dim=32", "method.embedding_dim=16", "method.queue_size=0",
        "method.batch_norm_splits=1", "method.projector=mlp_3",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, BATCH, 1, 32, 32), generator=generator).to(torch.uint8)
    state = create_state(RunContext(settings))
    task = DoubleContrast(state.model.double(), RunContext(settings), steps=STEPS)  # type: ignore[arg-type]
    state.model.train()
    found = []
    for step in range(2):
        (outputs,) = task.losses(Batch(list(views), torch.arange(BATCH), step, 0), measure=True)
        state.optimizer.zero_grad()
        outputs["loss"].backward()
        state.optimizer.step()
        task.after_step()
        found.append(float(outputs["loss"].detach()))
        assert float(outputs["chance"]) == pytest.approx(0.8 * math.log(BATCH))
    assert found == pytest.approx(_v3_by_loops(settings, views), rel=1e-9)


def test_contrast__no_query_ever_meets_a_key_of_its_own_image() -> None:
    """A queue longer than the split, both directions: what is blocked is exactly what the queue holds of the image."""
    settings = make_settings("method.symmetric=true", "method.negatives=other_images", "method.queue_size=200")
    state = create_state(RunContext(settings))
    model = state.model
    assert isinstance(model, MoCo)
    task = Contrast(model, RunContext(settings), numbers=torch.arange(24), steps=STEPS)
    model.train()
    held: list[int] = []
    for key in StepOrder(0, 24, BATCH, 6).from_step(0):
        own = [torch.randint(0, 256, (BATCH, 1, 32, 32)).to(torch.uint8) for _ in plan_of(settings.method).views]
        (outputs,) = task.losses(Batch(own, torch.from_numpy(key.samples), key.step, 0), measure=True)
        outputs["loss"].backward()
        open_keys = [200 - held.count(sample) for sample in key.samples.tolist()]
        assert float(outputs["chance"]) == pytest.approx(np.log1p(open_keys).mean())
        task.after_step()
        held = (held + 2 * key.samples.tolist())[-200:]
        assert sorted(model.queue_numbers[model.queue_numbers >= 0].tolist()) == sorted(held)
    check_sizes(24, settings)
    with pytest.raises(SettingsError, match=r"other_images excludes these\.\nSet method\.queue_size=16$"):
        check_sizes(24, make_settings("method.queue_size=200"))


@pytest.mark.parametrize("parts", [2, 4])
def test_contrast__parts_on_one_process_change_nothing(parts: int) -> None:
    found = train(ALONE, make_settings(f"train.accumulation_steps={parts}"))
    assert_equal_within_float_error(found, train(ALONE, make_settings()))


def test_contrast__groups_do_change_something() -> None:
    one, four = (train(ALONE, make_settings(f"method.batch_norm_splits={splits}")) for splits in (1, 4))
    assert one["losses"] != pytest.approx(four["losses"], rel=1e-4)


VOLUMES = (
    "data.dimensions=3", "data.window=[40,400]", "views.recipe=ct", "views.size=16",
    "model.backbone=monai/resnet10_quarter", "train.channels_last=true",
)  # fmt: skip


def _of_volumes(settings: config.RunSettings) -> tuple[DoubleContrast, torch.Tensor, list[torch.Tensor]]:
    """Return the task, two views (2, B, 1, S, S, S) of each volume, and the same as floats."""
    state = create_state(RunContext(settings))
    task = DoubleContrast(state.model.double().train(), RunContext(settings), steps=STEPS)  # type: ignore[arg-type]
    views = torch.randint(0, 256, (2, BATCH, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    views = views.to(torch.uint8)
    floats = [to_float(view, settings.views, torch.device("cpu"), channels_last=False).double() for view in views]
    return task, views, floats


def test_contrast__v2_with_groups_of_volumes_equals_a_plain_reference() -> None:
    settings = make_settings(*VOLUMES, "method.batch_norm_splits=8")
    task, views, floats = _of_volumes(settings)
    plain = create_moco(
        create_fitting_backbone(settings), settings.method, seed=1, size=settings.views.size
    ).double().train()  # fmt: skip
    plain.load_state_dict(task.model.state_dict())
    queue = plain.queue.clone()
    order = torch.from_numpy(key_order(settings.seed, 0, BATCH))
    (outputs,) = task.losses(Batch([views[0], views[1][order]], torch.arange(BATCH), 0, 0), measure=False)
    outputs["loss"].backward()
    task.after_step()

    # Both encoders start equal, so the moving average changes nothing.
    keys = torch.empty(BATCH, settings.method.embedding_dim, dtype=torch.float64)
    with torch.no_grad():
        for group in order.chunk(8):
            keys[group] = functional.normalize(plain.key_encoder(floats[1][group]), dim=1)
    loss, means = 0.0, []
    norm: Any = plain.query_encoder.backbone.net.bn1  # type: ignore[union-attr]
    for group in torch.arange(BATCH).chunk(8):
        norm.reset_running_stats()
        for i, q in zip(group, functional.normalize(plain.query_encoder(floats[0][group]), dim=1), strict=True):
            logits = torch.stack([q @ key for key in (keys[i], *queue)]) / settings.method.temperature
            own = (torch.logsumexp(logits, 0) - logits[0]) / BATCH
            own.backward(retain_graph=True)
            loss += float(own.detach())
        means.append(norm.running_mean.clone())
    assert float(outputs["loss"].detach()) == pytest.approx(loss, rel=1e-9)
    gradients = dict(plain.query_encoder.named_parameters())
    for name, weight in task.model.query_encoder.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(task.model.queue[:BATCH], keys)
    running_mean = task.model.query_encoder.backbone.net.bn1.running_mean  # type: ignore[union-attr]
    torch.testing.assert_close(running_mean, torch.stack(means).mean(0))
    weight = next(task.model.query_encoder.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_contrast__v3_of_volumes_equals_a_plain_reference() -> None:
    settings = make_settings(
        *VOLUMES, "method.name=moco_v3", "method.hidden_dim=32",
        "method.embedding_dim=16", "method.queue_size=0", "method.batch_norm_splits=1", "method.projector=mlp_2",
    )  # fmt: skip
    task, views, floats = _of_volumes(settings)
    plain = copy.deepcopy(task.model)
    (outputs,) = task.losses(Batch(list(views), torch.arange(BATCH), 0, 0), measure=False)
    outputs["loss"].backward()
    with torch.no_grad():
        keys = [functional.normalize(plain.key_encoder(view), dim=1) for view in floats]
    assert plain.predictor is not None
    queries = [functional.normalize(plain.predictor(plain.query_encoder(view)), dim=1) for view in floats]
    loss = torch.zeros((), dtype=torch.float64)
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        loss = loss + functional.cross_entropy(q @ k.T / settings.method.temperature, torch.arange(BATCH)) / 2
    loss = settings.method.loss_scale * loss
    loss.backward()
    assert float(outputs["loss"].detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
    gradients = dict(plain.query_encoder.named_parameters())
    for name, weight in task.model.query_encoder.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-6, atol=1e-9)


def test_contrast__reconstructs_volumes_too() -> None:
    settings = make_settings(*VOLUMES, "decoder.weight=2", "decoder.contrast=0.5", "decoder.channels=32")
    task, views, floats = _of_volumes(settings)
    (outputs,) = task.losses(Batch(list(views), torch.arange(BATCH), 0, 0), measure=False)
    with torch.no_grad():
        _, (made,) = task.model.branches()([floats[0]])
    assert made.shape == floats[0].shape
    assert float(outputs["reconstruction"]) == pytest.approx(float((made - floats[0]).square().mean()), rel=1e-5)
    expected = 0.5 * float(outputs["contrast"]) + 2 * float(outputs["reconstruction"])
    assert float(outputs["loss"].detach()) == pytest.approx(expected)


def test_create_fitting_backbone__of_volumes_checks_the_size() -> None:
    with pytest.raises(SettingsError, match=r"does not accept volumes of 16 x 16 x 16 voxels \(views\.size\)"):
        create_fitting_backbone(make_settings(*VOLUMES, "model.backbone=monai/densenet121"))
    with pytest.raises(SettingsError, match=r"'resnet50' is not a network for volumes .*did you mean monai/resnet50"):
        create_fitting_backbone(make_settings(*VOLUMES, "model.backbone=resnet50"))


def _tell_traffic(group: Group) -> str:
    settings = make_settings()
    train(group, settings)
    model = create_state(RunContext(settings, group=group)).model
    assert isinstance(model, MoCo)
    return traffic(RunContext(settings, group=group), STEPS, model)


def test_traffic__counts_what_was_sent() -> None:
    said, _ = run_together(2, _tell_traffic)
    assert "embeddings 0.00819" in said  # 8 keys of 128 numbers of 8 bytes
    assert said.endswith("would add 0.0328 MB")  # 8 images of 32 x 32 floats


def test_traffic__of_volumes_counts_voxels() -> None:
    settings = make_settings(*VOLUMES)
    group = Group(size=2)
    model = create_state(RunContext(settings)).model
    assert isinstance(model, MoCo)
    assert traffic(RunContext(settings, group=group), 1, model).endswith("would add 0.131 MB")  # 8 of 16**3 floats


def test_contrast_diagnostics__equal_plain_loops() -> None:
    torch.manual_seed(0)
    q, k = functional.normalize(torch.randn(6, 4), dim=1), functional.normalize(torch.randn(6, 4), dim=1)
    queue = functional.normalize(torch.randn(9, 4), dim=1)
    positive, negative = (q * k).sum(1) / 0.2, q @ queue.T / 0.2
    excluded = torch.zeros(6, 9, dtype=torch.bool)
    excluded[0, :3] = True
    found = contrast_diagnostics(positive, negative, Negatives(queue, excluded), temperature=0.2)
    right = sum(all(positive[i] > other for other in negative[i]) for i in range(6)) / 6
    assert float(found["accuracy"]) == pytest.approx(right)
    assert float(found["positive_similarity"]) == pytest.approx(sum(float(q[i] @ k[i]) for i in range(6)) / 6, abs=1e-6)
    assert float(found["chance"]) == pytest.approx((math.log(7) + 5 * math.log(10)) / 6)


def test_embedding_diagnostics__rank_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    q = functional.normalize(torch.randn(6, 4), dim=1)
    singular = np.linalg.svd(q.numpy(), compute_uv=False)
    share = singular / singular.sum()
    found = embedding_diagnostics(q)
    assert float(found["effective_rank"]) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_embedding_diagnostics__tell_collapse_from_embedding_diagnostics() -> None:
    torch.manual_seed(0)
    wide = functional.normalize(torch.randn(512, 16), dim=1)
    collapsed = functional.normalize(torch.ones(512, 16) + 1e-4 * torch.randn(512, 16), dim=1)
    assert float(embedding_diagnostics(wide)["embedding_std"]) == pytest.approx(1, abs=0.05)
    assert float(embedding_diagnostics(collapsed)["embedding_std"]) < 0.01
    assert float(embedding_diagnostics(wide)["effective_rank"]) > 15
    assert float(embedding_diagnostics(collapsed)["effective_rank"]) < 1.2


def test_embedding_diagnostics__of_what_is_not_finite_is_not_a_number() -> None:
    assert embedding_diagnostics(torch.full((8, 16), float("nan")))["effective_rank"].isnan()
