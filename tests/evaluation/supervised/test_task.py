from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medmoco import config
from medmoco.config import ModelSettings
from medmoco.data.loading.loading import Batch
from medmoco.data.manifest.manifest import load_manifest
from medmoco.evaluation.features.features import fingerprint
from medmoco.evaluation.features.probes import one_versus_rest
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.evaluation.supervised.task import Supervision, accuracies, cell_losses, class_weights
from medmoco.evaluation.supervised.training_labels import TrainingLabels, choose_training_labels
from medmoco.models.backbones import create_backbone
from medmoco.training.context import RunContext
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from tests.helpers.together import run_together

CPU = torch.device("cpu")
PATCHES = ["finetune.head=patches", "finetune.top_patches=1"]


def make_labels(folder: Path, *overrides: str) -> tuple[TrainingLabels, config.RunSettings]:
    lines = ["Path,A,B,Class"]
    lines += [f"{n}.png,{int(n % 4 == 0)},{'' if n % 2 else int(n % 3 == 0)},{'xyyzzz'[n % 6]}" for n in range(24)]
    (folder / "train.csv").write_text("\n".join(lines))
    base = ["out=run", f"data.manifest={folder}", "data.root=r", "data.labels=[A, B]", "views.size=32"]
    base += ["finetune.least_steps=1", "finetune.global_batch_size=8"]
    settings = config.load(None, [*base, *overrides])
    return choose_training_labels(load_manifest(settings.data, ("train",))["train"], settings), settings


def make_task(folder: Path, *overrides: str, frozen: bool = False, group: Group = ALONE) -> Supervision:
    labels, settings = make_labels(folder, *overrides)
    backbone = create_backbone(ModelSettings(backbone="test_resnet"), seed=0, size=32).requires_grad_(not frozen)
    torch.manual_seed(0)
    top_patches = settings.finetune.top_patches if settings.finetune.head == "patches" else None
    model = ClassifierNetwork(
        backbone, nn.Linear(backbone.feature_dim, len(labels.names)), exclusive=labels.exclusive,
        top_patches=top_patches,
    )  # fmt: skip
    join_batch_norm(model, group)
    return Supervision(model.train(), labels, RunContext(settings, group=group))


def make_batch(samples: Tensor) -> Batch:
    pixels = torch.randint(0, 256, (len(samples), 1, 32, 32), dtype=torch.uint8)
    return Batch([pixels], samples, 0, 0)


def test_cell_losses__is_cross_entropy_of_the_known_labels_alone() -> None:
    scores, targets = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).float()
    targets[0, 1] = targets[4] = math.nan
    weights = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5]])
    for gamma in (0.0, 2.0):
        found = cell_losses(scores, targets, weights, gamma=gamma, exclusive=False)
        for row in range(6):
            for label in range(3):
                truth, p = targets[row, label].item(), torch.sigmoid(scores[row, label]).item()
                if math.isnan(truth):
                    expected = 0.0
                else:
                    right = p if truth == 1 else 1 - p
                    expected = -weights[int(truth), label].item() * (1 - right) ** gamma * math.log(right)
                assert found[row, label].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_cell_losses__of_classes_is_softmax_cross_entropy() -> None:
    logits, codes = torch.randn(9, 4), torch.randint(0, 4, (9,))
    targets = functional.one_hot(codes, 4).float()
    losses = cell_losses(one_versus_rest(logits), targets, torch.ones(2, 4), gamma=0.0, exclusive=True)
    torch.testing.assert_close(losses.sum(1), functional.cross_entropy(logits, codes, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_cell_losses__slopes_are_finite_at_any_score(gamma: float) -> None:
    scores = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.0], [1.0, math.nan]])
    cell_losses(scores, targets, torch.ones(2, 2), gamma=gamma, exclusive=False).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[1, 1] == 0


def test_class_weights__balanced_ones_count_both_sides_alike_and_are_one_in_the_mean(tmp_path: Path) -> None:
    labels, _ = make_labels(tmp_path)
    weights = class_weights(labels, "balanced").numpy()
    for number in range(2):
        column = labels.targets[:, number]
        negatives, positives = (column == 0).sum(), (column == 1).sum()
        assert weights[0, number] * negatives == pytest.approx(weights[1, number] * positives)
        assert weights[0, number] * negatives + weights[1, number] * positives == pytest.approx(negatives + positives)
    classes, _ = make_labels(tmp_path, "finetune.classes=Class")
    weights = class_weights(classes, "balanced").numpy()
    np.testing.assert_allclose(weights[1] * np.bincount(classes.targets), 8)
    assert (class_weights(labels, "none") == 1).all()


@pytest.mark.parametrize("overrides", [[], ["finetune.classes=Class"], ["finetune.loss=focal"], PATCHES])
def test_supervision__parts_of_a_batch_have_its_gradient(tmp_path: Path, overrides: list[str]) -> None:
    """With the encoder frozen, whose batch norms would tell the parts apart."""
    gradients, batch = [], make_batch(torch.tensor([0, 1, 2, 3, 4, 5, 7, 9]))
    for parts in (1, 2, 4):
        task = make_task(tmp_path, *overrides, f"train.accumulation_steps={parts}", frozen=True)
        for outputs in task.losses(batch, measure=False):
            outputs["loss"].backward()
        assert task.model.head.weight.grad is not None
        gradients.append(task.model.head.weight.grad)
    assert gradients[0].abs().max() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def _gradients(group: Group, folder: Path, overrides: list[str], frozen: bool) -> dict[str, NDArray[np.float32]]:
    """Return what this process's share of a batch leaves; the shares have different numbers of known labels."""
    torch.manual_seed(0)
    batch, share = make_batch(torch.tensor([0, 2, 4, 6, 1, 3, 5, 8])), group.share.of(8)
    batch = Batch([batch.views[0][share]], batch.samples[share], 0, 0)
    own = folder / str(group.rank)
    own.mkdir(exist_ok=True)
    task = make_task(own, *overrides, frozen=frozen, group=group)
    for outputs in task.losses(batch, measure=False):
        outputs["loss"].backward()
    task.after_step()
    found = {name: weight.grad for name, weight in task.model.named_parameters() if weight.grad is not None}
    found |= {name: value for name, value in task.model.named_buffers() if name.endswith("running_var")}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(
    ("overrides", "frozen"),
    [
        ([], False),
        (["train.accumulation_steps=2"], True),
        pytest.param(["finetune.classes=Class"], False, marks=pytest.mark.slow),
        pytest.param(PATCHES, False, marks=pytest.mark.slow),
    ],
)
def test_supervision__two_processes_come_to_the_gradient_of_one(
    tmp_path: Path, overrides: list[str], frozen: bool
) -> None:
    whole = _gradients(ALONE, tmp_path, overrides, frozen)
    for found in run_together(2, _gradients, tmp_path, overrides, frozen):
        assert found.keys() == whole.keys()
        for name, expected in whole.items():
            assert np.linalg.norm(found[name] - expected) < 1e-3 * np.linalg.norm(expected) + 1e-9, name


def test_supervision__looks_labels_up_by_sample(tmp_path: Path) -> None:
    task, samples = make_task(tmp_path), torch.tensor([3, 0, 8])
    batch = make_batch(samples)
    (outputs,) = task.losses(batch, measure=True)
    labels, _ = make_labels(tmp_path)
    targets = torch.from_numpy(labels.targets)[samples]
    scores = task.model((batch.views[0] / 255 - 0.5) / 0.25)
    known = ~targets.isnan()
    expected = functional.binary_cross_entropy_with_logits(scores[known], targets[known])
    torch.testing.assert_close(outputs["loss"], expected, rtol=1e-4, atol=1e-5)


def test_supervision__a_batch_without_a_label_does_nothing(tmp_path: Path) -> None:
    task = make_task(tmp_path, "data.labels=[B, A]")
    task._targets[:] = math.nan
    for outputs in task.losses(make_batch(torch.arange(4)), measure=False):
        outputs["loss"].backward()
    assert outputs["loss"] == 0
    for parameter in task.model.parameters():
        assert parameter.grad is None or (parameter.grad == 0).all()


def test_supervision__a_frozen_encoder_stays_as_it_is_batch_norm_included(tmp_path: Path) -> None:
    for frozen in (True, False):
        task = make_task(tmp_path, frozen=frozen)
        before = fingerprint(task.model.backbone)
        optimizer = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], 0.1)
        for outputs in task.losses(make_batch(torch.arange(8)), measure=False):
            outputs["loss"].backward()
        optimizer.step()
        task.after_step()
        assert (fingerprint(task.model.backbone) == before) == frozen


def test_supervision__a_skipped_step_leaves_the_running_statistics(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    statistics = [buffer for name, buffer in task.model.named_buffers() if "running" in name]
    before = [buffer.clone() for buffer in statistics]
    list(task.losses(make_batch(torch.arange(8)), measure=False))
    task.skip_step()
    task.after_step()
    assert statistics
    assert all(torch.equal(now, then) for now, then in zip(statistics, before, strict=True))


def test_accuracies__count_the_right_class_among_the_first() -> None:
    scores = np.array([[9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 1.0]])
    targets = np.eye(7)[[0, 1, 2]]
    assert accuracies(targets, scores) == {"top1": pytest.approx(1 / 3), "top5": pytest.approx((1 + 0 + 4 / 6) / 3)}
    targets[0] = np.nan
    assert accuracies(targets, scores)["top1"] == 0
    assert accuracies(np.eye(3), np.eye(3)) == {"top1": 1.0}
    assert accuracies(np.eye(7), np.zeros((7, 7))) == {"top1": pytest.approx(1 / 7), "top5": pytest.approx(5 / 7)}
