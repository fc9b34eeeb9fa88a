from __future__ import annotations

import pytest

from medmoco import config
from medmoco.errors import SettingsError
from medmoco.training.sizes import batch_norm_groups, check_sizes, power_of_two


def make_settings(*overrides: str) -> config.RunSettings:
    base = ["out=run", "data.manifest=m", "data.root=r", "train.global_batch_size=16", "method.queue_size=24"]
    return config.load(None, [*base, "method.batch_norm_splits=4", *overrides])


@pytest.mark.parametrize(
    ("processes", "splits", "parts", "groups"),
    [(1, 1, 1, 1), (1, 4, 1, 4), (4, 4, 1, 4), (4, 1, 1, 4), (2, 8, 2, 8), (4, 2, 2, 8)],
)
def test_batch_norm_groups__are_those_asked_for_and_at_least_one_a_pass(
    processes: int, splits: int, parts: int, groups: int
) -> None:
    settings = make_settings(f"method.batch_norm_splits={splits}", f"train.accumulation_steps={parts}")
    assert batch_norm_groups(settings, processes) == groups


def test_check_sizes__what_the_processes_cannot_divide() -> None:
    with pytest.raises(SettingsError, match=r"does not divide into 12 equal groups(?s:.*)multiple of 12, such as 24"):
        check_sizes(100, make_settings("train.global_batch_size=20"), processes=3)


@pytest.mark.parametrize(
    ("images", "overrides", "processes", "fix"),
    [
        (252, ("method.batch_norm_splits=1",), 1, {"train.global_batch_size": 32, "method.queue_size": 128}),
        (252, ("train.accumulation_steps=3",), 2, {"train.global_batch_size": 24, "method.queue_size": 128}),
        (252, ("method.queue_size=9", "method.batch_norm_splits=64"), 1, {"train.global_batch_size": 128}),
        (20, ("method.queue_size=9", "method.batch_norm_splits=64"), 1,
         {"train.global_batch_size": 4, "method.batch_norm_splits": 1}),
        (252, ("train.global_batch_size=20", "method.batch_norm_splits=1", "method.queue_size=300"), 3,
         {"train.global_batch_size": 21, "method.queue_size": 128}),
        (252, ("method.negatives=other_images",), 1, {"train.global_batch_size": 32}),
        (100, ("method.queue_size=9", "method.batch_norm_splits=1", "train.accumulation_steps=64"), 1,
         {"train.global_batch_size": 16, "train.accumulation_steps": 1}),
        (17, ("method.queue_size=9", "train.accumulation_steps=2"), 8,
         {"train.global_batch_size": 16, "method.batch_norm_splits": 1, "train.accumulation_steps": 1}),
        (30, ("train.global_batch_size=28", "method.batch_norm_splits=7", "method.queue_size=9"), 3,
         {"train.global_batch_size": 6, "method.batch_norm_splits": 1}),
        (100, ("train.global_batch_size=100", "method.queue_size=9", "train.accumulation_steps=64"), 1,
         {"train.global_batch_size": 16, "method.batch_norm_splits": 1, "train.accumulation_steps": 1}),
    ],
)  # fmt: skip
def test_check_sizes__proposes_settings_that_it_accepts(
    images: int, overrides: tuple[str, ...], processes: int, fix: dict[str, int]
) -> None:
    settings = make_settings("train.global_batch_size=256", "method.queue_size=65536", *overrides)
    with pytest.raises(SettingsError) as caught:
        check_sizes(images, settings, processes)
    assert caught.value.fix == fix
    pasted = str(caught.value).rpartition("\nSet ")[2].rstrip(".").split()
    if len(fix) > 1 or "does not divide" not in str(caught.value):
        assert pasted == [f"{key}={value}" for key, value in caught.value.fix.items()]
    check_sizes(images, config.load(settings, [f"{key}={value}" for key, value in fix.items()]), processes)


@pytest.mark.parametrize(
    ("images", "processes", "text"),
    [
        (10, 8, "pretraining with 8 processes needs at least 16 training images; there are only 10.\n"
         "Start fewer processes, or add images."),
        (1, 1, "pretraining needs at least 2 training images; there is only 1.\nAdd images."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [2, 20, 256])
def test_check_sizes__proposes_nothing_for_too_few_images(images: int, processes: int, text: str, batch: int) -> None:
    settings = make_settings(f"train.global_batch_size={batch}", "method.batch_norm_splits=1", "method.queue_size=1")
    with pytest.raises(SettingsError) as caught:
        check_sizes(images, settings, processes)
    assert str(caught.value) == text
    assert not caught.value.fix


def test_power_of_two__is_at_most_the_number_but_1_at_least() -> None:
    assert [power_of_two(most) for most in (-1, 0, 1, 2, 3, 4, 63, 64)] == [1, 1, 1, 2, 2, 4, 32, 64]
