from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medmoco.data.loading.loading import Batch
from medmoco.training import bench as module
from medmoco.training.bench import ROUNDS, Facts, Rate, advise, bench
from tests.helpers.packs import make_images, pack, settings_for


def rate(median: float, spread: float = 0.0) -> Rate:
    return Rate(median, median * (1 - spread / 2), median * (1 + spread / 2))


FACTS = Facts(
    read=rate(100), views=rate(900), step=rate(300), together=rate(175), waiting=0.4, workers=2, cores=16,
    packed=False, device="cuda", precision="bf16", best_precision="bf16",
)  # fmt: skip


def words(**changes: object) -> str:
    return " ".join(advise(replace(FACTS, **changes)))  # type: ignore[arg-type]


def test_advise__loading_from_files_wants_workers_and_a_pack() -> None:
    said = words()
    assert "Training runs at 175 images/s. The training step alone would do 300, the loading of data 180." in said
    assert "The bottleneck is the loading of data." in said
    assert "data.workers=4 would keep up." in said  # 300 / 90, and a fifth to spare
    assert "Reading and decoding take 90% of a worker's time, and a pack" in said
    assert "2 workers would then make up to 1800 images/s" in said
    assert "training step;" not in said


def test_advise__more_workers_than_cores_are_not_promised_to_suffice() -> None:
    assert "data.workers=3 would help; 4 would be needed to keep up." in words(cores=4)
    said = words(cores=4, workers=3, step=rate(2000))
    assert "To keep up, 27 workers would be needed; this machine has 4 cores." in said
    assert "data.workers=" not in said


def test_advise__from_a_pack_the_disk_or_the_views_are_to_blame_but_no_pack() -> None:
    slow_disk = words(packed=True)
    assert "Reading from the pack takes 90% of a worker's time" in slow_disk
    assert "medmoco pack" not in slow_disk
    views = words(packed=True, read=rate(20_000), views=rate(100))
    assert "Views take 100% of a worker's time: lower views.size" in views
    assert "medmoco pack" not in views


def test_advise__no_workers_at_all() -> None:
    said = words(workers=0, together=rate(69))
    assert "data.workers=4 would keep up." in said
    assert "1 worker would then" in said


def test_advise__a_slow_step_wants_other_things_than_loading() -> None:
    said = words(step=rate(50), together=rate(49), precision="fp32")
    assert "The bottleneck is the training step; loading keeps up with it." in said
    assert "train.precision=bf16 is the fastest precision that this device supports well." in said
    assert "data.workers" not in said
    assert "pack" not in said
    assert "train.precision" not in words(step=rate(50), together=rate(49))
    assert "A GPU, a smaller model.backbone" in words(step=rate(50), together=rate(49), device="cpu")


def test_advise__close_rates_are_called_equal_and_noise_widens_what_is_close() -> None:
    assert "about equally fast" in words(step=rate(190))
    assert "bottleneck" not in words(step=rate(190))
    assert "The bottleneck is the loading of data." in words(step=rate(270))
    noisy = words(step=rate(270, spread=0.8))
    assert "about equally fast" in noisy
    assert "Rounds differed by up to 80%" in noisy
    assert "Rounds differed" not in words(step=rate(270, spread=0.2))


def test_advise__sharing_of_cores_is_said() -> None:
    said = words(device="cpu", cores=2, step=rate(100), together=rate(60))
    assert "Together they reach 60% of the slower one: the step and the workers share 2 cores." in said
    assert "Together" not in words(device="cpu", cores=2, step=rate(100), together=rate(95))


def test_rate__is_the_median_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 0.1, 0.2, 0.4, 0.5, 10.0])  # the first does not count
    now = 0.0

    def work() -> int:
        nonlocal now
        now += next(durations)
        return 10

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    found = module._rate(work, seconds=0.0)
    assert found == Rate(pytest.approx(25), pytest.approx(1), pytest.approx(100))
    assert found.spread == pytest.approx(99 / 25)


def test_stopwatch__counts_images_and_waiting() -> None:
    batch = Batch([], torch.arange(4))

    def slowly() -> Iterator[Batch]:
        while True:
            time.sleep(0.02)
            yield batch

    stopwatch = module._Stopwatch(torch.device("cpu"), ROUNDS * 0.1, skip=1)
    passed = stopwatch.timed(slowly())
    with suppress(module._TimeIsUp):
        for _ in passed:
            time.sleep(0.005)
    assert len(stopwatch.rates) == ROUNDS
    assert 0 < max(stopwatch.rates) <= 4 / 0.025
    assert 0.5 < stopwatch.waited / stopwatch.total < 1


@pytest.mark.parametrize("packed", [False, True])
def test_bench__measures_all_four_and_speaks(tmp_path: Path, packed: bool) -> None:
    make_images(tmp_path, train=12)
    overrides = [
        "data.workers=1", "views.size=32", "model.backbone=test_resnet", "method.queue_size=8",
        "train.global_batch_size=4", "train.precision=fp32",
    ]  # fmt: skip
    if packed:
        pack(tmp_path, tmp_path / "pack")
        overrides.append(f"data.pack={tmp_path / 'pack'}")
    before = torch.get_num_threads()
    said: list[str] = []
    text = bench(settings_for(tmp_path, *overrides), 0.1, said.append)
    assert len(said) == 4
    for part in ("reading and decoding, one process", "two views, one process", "training step", "with 1 worker "):
        assert part in text
    assert "Training runs at " in text
    assert torch.get_num_threads() == before
    assert not (tmp_path / "run").exists()
