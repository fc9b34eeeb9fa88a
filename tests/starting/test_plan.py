"""Settings chosen from the images and the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmoco.config import load
from medmoco.data.quality.shapes import elongation
from medmoco.starting.machine import Gpu, Machine
from medmoco.starting.plan import Choice, Facts, Plan, as_tree, as_yaml, choose_shape, make_plan
from medmoco.training.sizes import check_sizes

CPU = Machine(2, 16 * 10**9, (), 10**9, has_amx=False)
GPU = Machine(16, 128 * 10**9, (Gpu("A100", 40 * 10**9),), 10**10, has_amx=False)
FACTS = Facts(
    train=2800, val=600, labels=("A",), coloured=0.0, shape=choose_shape(1024, 1000, CPU), decode_seconds=0.001,
    view_seconds=0.001, pack_bytes=10**6, free_bytes=10**9,
)  # fmt: skip


def _plan(machine: Machine = CPU, *, minutes: float = 60, rate: float = 100, **facts: Any) -> Plan:
    return make_plan(replace(FACTS, **facts), machine, minutes, lambda _: rate)


def _values(plan: Plan) -> dict[str, Any]:
    return {choice.key: choice.value for choice in plan.choices}


@pytest.mark.parametrize("machine", [CPU, GPU, replace(GPU, gpus=GPU.gpus * 8), replace(GPU, gpus=GPU.gpus * 3)])
@pytest.mark.parametrize("train", [2, 3, 20, 300, 2800, 1_000_000])
@pytest.mark.parametrize("size", [(28, 28), (1408, 573)])
@pytest.mark.parametrize("minutes", [0.1, 6000])
def test_make_plan__every_plan_can_be_trained(
    machine: Machine, train: int, size: tuple[int, int], minutes: float
) -> None:
    shape = choose_shape(*size, machine)
    plan = _plan(machine, minutes=minutes, train=train, val=train // 5, shape=shape)
    tree = as_tree([Choice("out", "x"), Choice("data.manifest", "x"), Choice("data.root", "x"), *plan.choices])
    settings = load(tree)
    processes = plan.devices or max(1, len(machine.gpus))
    check_sizes(train, settings, processes)
    assert settings.method.queue_size < train
    assert not [choice.key for choice in plan.choices if not choice.reason]


def test_make_plan__on_a_cpu_follows_the_shipped_settings() -> None:
    shipped = load("configs/cxr.yaml").model_dump(mode="json", exclude_unset=True)
    values = _values(_plan())
    del shipped["data"]["manifest"], shipped["data"]["root"], shipped["data"]["labels"]
    for group in ("data", "views", "model", "method", "train", "evaluate"):
        for key, value in shipped[group].items():
            if (group, key) not in {("train", "epochs"), ("train", "knn_every")}:
                assert values[f"{group}.{key}"] == value, key


def test_make_plan__epochs_fill_the_time() -> None:
    plan = _plan(minutes=60)
    assert 0.8 * 3600 < plan.seconds <= 3600
    assert _values(plan)["train.epochs"] == pytest.approx(120, rel=0.1)
    assert _values(_plan(minutes=1))["train.epochs"] == 1
    assert _values(_plan(minutes=6000))["train.epochs"] == 200


def test_make_plan__expects_the_duration_that_training_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    images: dict[str, Any] = {"labels": (), "decode_seconds": 0.0}
    for view_seconds, each in ((0.004, 0.012), (0.05, 0.05)):  # sharing the two cores, and waiting for one worker
        plan = _plan(**images, view_seconds=view_seconds)
        assert plan.seconds == pytest.approx(_values(plan)["train.epochs"] * 2800 * each)
    several = _plan(replace(GPU, cores=4, gpus=GPU.gpus * 4), **images, view_seconds=0.05)
    assert several.seconds == pytest.approx(_values(several)["train.epochs"] * 2800 * 0.05 / 4)


def test_make_plan__warns_if_an_epoch_exceeds_the_time() -> None:
    assert "longer than the 6 s" in _plan(minutes=0.1).notes[0]
    assert not _plan().notes


def test_make_plan__packs_only_where_decoding_is_slow() -> None:
    assert "data.pack" not in _values(_plan())
    slow = _plan(decode_seconds=0.2)
    assert "data.pack" in _values(slow)
    assert slow.pack_seconds == pytest.approx(0.2 * 3400 / 2)
    assert "data.pack" not in _values(_plan(decode_seconds=0.2, free_bytes=10**6))


def test_make_plan__on_a_gpu() -> None:
    values = _values(_plan(GPU, train=200_000, rate=1000, minutes=600, shape=choose_shape(1024, 1000, GPU)))
    assert (values["model.backbone"], values["views.size"], values["data.canvas_size"]) == ("resnet50", 224, 256)
    assert (values["train.global_batch_size"], values["method.queue_size"]) == (256, 65536)
    assert values["method.key_momentum"] == 0.999
    assert "train.optimizer" not in values
    assert _values(_plan(GPU, train=20_000, rate=1000, minutes=10))["train.optimizer"] == "adamw"


def test_make_plan__few_images_use_one_of_several_gpus() -> None:
    several = replace(GPU, gpus=GPU.gpus * 8)
    assert _plan(several, train=20).devices == 1
    assert _plan(several, train=20_000).devices == 0


def test_make_plan__colour_needs_most_of_the_images() -> None:
    assert _values(_plan(coloured=0.9))["data.channels"] == "rgb"
    mixed = {choice.key: choice for choice in _plan(coloured=0.2).choices}["data.channels"]
    assert (mixed.value, mixed.reason) == ("gray", "20% of the sampled images have colour; they are converted to gray")


def test_make_plan__without_validation_images_nothing_is_scored() -> None:
    assert "train.knn_every" not in _values(_plan(val=0))
    assert "train.knn_every" not in _values(_plan(labels=()))


def test_choose_shape__small_images_are_not_enlarged() -> None:
    shape = choose_shape(28, 28, CPU)
    assert (shape.canvas, shape.view) == (32, 32)


def test_choose_shape__long_images_keep_enough_of_their_shorter_side() -> None:
    shape = choose_shape(1408, 573, CPU)
    assert shape.canvas * 573 / 1408 >= shape.view == 96
    assert shape.whole == 128


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("ratio", [1.0, 1.59, 1.61, 1.8, 2.5, 5.0])
def test_choose_shape__is_not_contradicted_when_training_starts(machine: Machine, ratio: float) -> None:
    height, width = 1000, round(1000 * ratio)
    shape = choose_shape(width, height, machine)
    given = [f"data.canvas_size={shape.canvas}", f"views.size={shape.view}", f"evaluate.size={shape.whole}"]
    settings = load(None, ["out=a", "data.manifest=a", "data.root=a", *given])
    assert not elongation(np.array([[height, width]]), settings)


def test_as_yaml__reads_back_with_its_reasons(tmp_path: Path) -> None:
    labels = ["No Finding", "no", "a: b", "#1", "Ödem", *(f"label {number}" for number in range(20))]
    choices = [
        Choice("out", "run"),
        Choice("data.manifest", "m", "a reason"),
        Choice("data.root", "x" * 90, "a reason" * 5),
        Choice("data.labels", labels, "a reason"),
        Choice("train.lr", 0.001),
    ]
    file = tmp_path / "medmoco.yaml"
    file.write_text(as_yaml(choices, ["one", "two"]), encoding="utf-8")
    settings = load(file)
    assert list(settings.data.labels) == labels
    assert settings.data.root == "x" * 90
    text = file.read_text(encoding="utf-8")
    assert text.count("a reason") == 7
    assert text.startswith("# one\n# two\nout: run\n")
