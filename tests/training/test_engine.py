from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medmoco.config import TrainSettings
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.quarantine import Replacement
from medmoco.data.loading.sampler import StepOrder
from medmoco.errors import DataError, DivergedError, ImageError, Stopped
from medmoco.training.distributed import ALONE, Group
from medmoco.training.engine import Hooks, Loop, Skips, TrainState, notices_of
from medmoco.training.optim import learning_rate
from medmoco.training.runlog import RunLog
from tests.helpers.together import run_together

ORDER = StepOrder(seed=1, samples=10, batch_size=4, epochs=3)  # 2 steps per epoch, 6 in all


class Toy:
    """Fits a line through dropout noise; can do something at a step."""

    def __init__(self, at: dict[int, Callable[[], float]] | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        self.at = at or {}
        self.after = self.skips = 0
        self.measured: list[int] = []

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        if measure:
            self.measured.append(batch.step)
        factor = self.at[batch.step]() if batch.step in self.at else 1.0
        features = batch.samples.float()[:, None].expand(-1, 4)
        loss = (self.model(features) - 1).square().mean() * factor
        yield {"loss": loss, "chance": torch.tensor(9.0)} if measure else {"loss": loss}

    def after_step(self) -> None:
        self.after += 1

    def skip_step(self) -> None:
        self.skips += 1


def run(
    task: Toy, folder: Path, train: TrainSettings, *, state: TrainState | None = None, epochs: list[int] | None = None,
    saved: list[int] | None = None, skipped: list[Any] | None = None, notice: str = "",
    monitor: Callable[[], None] = lambda: None, finished: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, list[int]]:  # fmt: skip
    optimizer = torch.optim.SGD(task.model.parameters(), train.lr, momentum=0.9)
    state = state or TrainState(task.model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    saved = [] if saved is None else saved

    def after_epoch(epoch: int, _: Callable[[], bool]) -> dict[str, float]:
        if epochs is not None:
            epochs.append(epoch)
        monitor()
        return {}

    def batches() -> Iterator[Batch]:
        for key in ORDER.from_step(state.step):
            yield Batch([], torch.from_numpy(key.samples), key.step, key.epoch, (notice,) if notice else ())

    folder.mkdir(exist_ok=True)
    with RunLog(folder, steps=ORDER.steps, start_step=state.step) as log:
        hooks = Hooks(
            lambda now: saved.append(now.step),
            after_epoch,
            lambda *one: skipped.append(one) if skipped is not None else None,
            finished=finished,
        )
        Loop(state, ORDER, train, log, hooks).fit(task, batches())
    return state, saved


def train_settings(**options: float) -> TrainSettings:
    return TrainSettings(**{"epochs": 3, "lr": 1e-3, "log_every": 4, "checkpoint_every": 4, **options})


def test_fit__runs_every_step_and_calls_back(tmp_path: Path) -> None:
    task, epochs = Toy(), []
    state, saved = run(task, tmp_path, train_settings(), epochs=epochs)
    assert (state.step, task.after) == (6, 6)
    assert saved == [4, 6]
    assert epochs == [0, 1, 2]
    assert task.measured == [3, 5]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 6]
    assert records[0]["lr"] == pytest.approx(learning_rate(train_settings(), 1.5))
    assert records[0]["epoch"] == 1
    assert 0 <= records[0]["waiting"] <= 1


def test_fit__ends_early_where_it_is_finished_and_saves(tmp_path: Path) -> None:
    epochs: list[int] = []
    train = train_settings(checkpoint_every=100)
    state, saved = run(Toy(), tmp_path, train, epochs=epochs, finished=lambda: len(epochs) == 2)
    assert state.step == 4
    assert saved == [4]
    again, saved = run(Toy(), tmp_path, train, state=state, finished=lambda: True)
    assert again.step == 4
    assert saved == []


def test_fit__groups_scale_the_learning_rate(tmp_path: Path) -> None:
    task, train = Toy(), train_settings()
    groups = [{"params": [p], "lr_scale": scale} for p, scale in zip(task.model.parameters(), (1.0, 0.25), strict=True)]
    optimizer = torch.optim.SGD(groups, train.lr)
    run(task, tmp_path, train, state=TrainState(task.model, optimizer, torch.amp.GradScaler("cpu", enabled=False)))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [pytest.approx(scale * learning_rate(train, 2.5)) for scale in (1.0, 0.25)]


def test_fit__loss_in_the_record_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    frozen = train_settings(lr=1e-30, log_every=6)
    run(Toy(), tmp_path, frozen)
    torch.manual_seed(0)
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    losses = []

    class Recording(Toy):
        def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
            for outputs in super().losses(batch, measure):
                losses.append(outputs["loss"].item())
                yield outputs

    run(Recording(), tmp_path / "again", frozen)
    assert record["loss"] == pytest.approx(sum(losses) / 6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_fit__a_signal_saves_and_stops_and_resuming_is_bitwise(tmp_path: Path, number: signal.Signals) -> None:
    straight, _ = run(Toy(), tmp_path / "a", train_settings())

    def ask() -> float:
        os.kill(os.getpid(), number)
        return 1.0

    stopped = Toy({2: ask})
    train = train_settings()
    state = TrainState(
        stopped.model,
        torch.optim.SGD(stopped.model.parameters(), train.lr, momentum=0.9),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 3 of 6") as caught:
        run(stopped, tmp_path / "b", train, state=state)
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) is before
    resumed, _ = run(stopped, tmp_path / "b", train, state=state)
    for ours, expected in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fit__a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path, bad: float) -> None:
    task, skipped = Toy({2: lambda: bad}), []
    seen = {}

    def look() -> None:  # after each epoch of two steps
        seen[len(seen)] = [p.detach().clone() for p in task.model.parameters()]

    state, saved = run(task, tmp_path, train_settings(log_every=2), skipped=skipped, monitor=look)
    assert (state.step, task.after, task.skips) == (6, 5, 1)
    assert skipped == [(2, 1, [0])]
    assert saved == [4, 6]
    assert all(parameter.isfinite().all() for parameter in task.model.parameters())
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(record["loss"] is not None for record in records)  # of the other step


@pytest.mark.parametrize(("bad_steps", "ends"), [((1, 2, 3), True), ((0, 2, 4), False)])
def test_fit__many_skipped_steps_in_a_row_end_the_run(tmp_path: Path, bad_steps: tuple[int], ends: bool) -> None:
    task, saved = Toy(dict.fromkeys(bad_steps, lambda: float("nan"))), []
    train = train_settings(max_skipped=3, checkpoint_every=2)
    if not ends:
        assert run(task, tmp_path, train)[0].step == 6
        return
    with pytest.raises(DivergedError, match=r"last 3 steps, up to step 3.*\n.*train\.lr") as caught:
        run(task, tmp_path, train, saved=saved)
    assert caught.value.exit_code == 5
    assert saved == [2]


@pytest.mark.parametrize(
    ("bad_steps", "words"), [((5,), "the last step had no"), ((3, 4, 5), "last 3 steps, up to step 5,")]
)
def test_fit__a_run_that_ends_in_skipped_steps_has_diverged(
    tmp_path: Path, bad_steps: tuple[int, ...], words: str
) -> None:
    task, saved = Toy(dict.fromkeys(bad_steps, lambda: float("nan"))), []
    with pytest.raises(DivergedError, match=words):
        run(task, tmp_path, train_settings(checkpoint_every=2), saved=saved)
    assert saved == [2, 4][: bad_steps[0] - 1]


def test_skips__fp16_may_still_be_finding_its_scale_at_the_end() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    state = TrainState(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)]), scaler, step=6)
    hooks = Hooks(lambda _: None, lambda _, __: {}, lambda _, __, ___: None)
    Skips(3, 6).count(False, torch.tensor(1.0), state, ALONE, hooks)
    with pytest.raises(DivergedError):
        Skips(3, 6).count(False, torch.tensor(float("nan")), state, ALONE, hooks)


def test_fit__weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    saved: list[int] = []
    with pytest.raises(DivergedError, match="weights are not finite, and are not saved"):
        run(Toy({}), tmp_path, train_settings(lr=1e38, checkpoint_every=1, global_batch_size=4), saved=saved)
    assert not saved


def test_fit__saves_before_it_ends_for_bad_data(tmp_path: Path) -> None:
    class Broken(Toy):
        pass

    def batches(state: TrainState) -> Iterator[Batch]:
        for key in ORDER.from_step(state.step):
            if key.step == 3:
                raise ImageError("train.csv row 7: truncated")
            yield Batch([], torch.from_numpy(key.samples), key.step, key.epoch)

    task, saved = Broken(), []
    optimizer = torch.optim.SGD(task.model.parameters(), 1e-3)
    state = TrainState(task.model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    hooks = Hooks(lambda now: saved.append(now.step), lambda *_: {}, lambda *_: None)
    with (
        RunLog(tmp_path, steps=ORDER.steps, start_step=0) as log,
        pytest.raises(ImageError, match="row 7"),
    ):
        Loop(state, ORDER, train_settings(), log, hooks).fit(task, batches(state))
    assert saved == [3]


@pytest.mark.parametrize("where", ["before the step", "after the epoch"])
def test_fit__saves_before_it_ends_for_what_a_hook_says_of_data(tmp_path: Path, where: str) -> None:
    task, saved = Toy(), []
    optimizer = torch.optim.SGD(task.model.parameters(), 1e-3)
    state = TrainState(task.model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    replaced = (Replacement(0, 3, 3, ((5, "truncated"),)),)

    def refuse(*_: object) -> dict[str, float]:
        raise DataError("too many")

    batches = (
        Batch([], torch.from_numpy(key.samples), key.step, key.epoch, replaced=replaced if key.step == 1 else ())
        for key in ORDER.from_step(0)
    )
    hooks = Hooks(lambda now: saved.append(now.step), refuse, lambda *_: None)
    if where == "before the step":
        hooks = Hooks(lambda now: saved.append(now.step), lambda *_: {}, lambda *_: None, refuse)
    with RunLog(tmp_path, steps=ORDER.steps, start_step=0) as log, pytest.raises(DataError, match="too many"):
        Loop(state, ORDER, train_settings(), log, hooks).fit(task, batches)
    assert saved == [1 if where == "before the step" else 2]


def test_fit__time_of_the_monitor_is_not_training(tmp_path: Path) -> None:
    run(Toy(), tmp_path, train_settings(log_every=6), monitor=lambda: time.sleep(0.2))
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert 6 * 4 / record["images_per_second"] < 0.3


def test_fit__remarks_on_images_in_the_first_epoch_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Toy(), tmp_path, train_settings(), notice="train.csv row 7: constant image")
    assert "warning: train.csv row 7: constant image" in capsys.readouterr().err
    assert "1 more images: constant image" in (tmp_path / "log.txt").read_text()


def test_fit__clips_the_gradient_norm(tmp_path: Path) -> None:
    task = Toy()
    before = [p.detach().clone() for p in task.model.parameters()]
    run(task, tmp_path, train_settings(clip_norm=1e-9, lr=1.0))
    for old, new in zip(before, task.model.parameters(), strict=True):
        assert (new - old).abs().max() < 1e-7


def test_train_state__restores_what_it_gave(tmp_path: Path) -> None:
    first, _ = run(Toy(), tmp_path, train_settings())
    content = {"step": first.step, **first.as_content()}
    task = Toy()
    fresh = TrainState(
        task.model,
        torch.optim.SGD(task.model.parameters(), 1.0, momentum=0.9),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    fresh.restore(content)
    assert fresh.step == 6
    for ours, expected in zip(fresh.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert fresh.optimizer.state_dict()["state"].keys() == {0, 1}


def _notices(group: Group) -> list[str]:
    own = (f"train.csv row {group.rank}: constant image",) if group.rank else ()
    return notices_of(Batch([], torch.zeros(2), 0, 0, own), group)


def test_notices_of__all_processes_reach_the_first() -> None:
    expected = ["train.csv row 1: constant image", "train.csv row 2: constant image"]
    assert run_together(3, _notices) == [expected] * 3
    assert _notices(ALONE) == []
