from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from medmoco import config
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import SettingsError
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.context import RunContext
from medmoco.training.engine import TrainState
from medmoco.training.run_folder import NEW, StartMode, facts_of
from medmoco.training.session import Job, TrainingSession, open_session


@pytest.fixture
def settings(tmp_path: Path) -> config.RunSettings:
    (tmp_path / "train.csv").write_text("\n".join(["Path", *(f"{n}.png" for n in range(8))]))
    return config.load(None, [
        f"out={tmp_path / 'run'}", f"data.manifest={tmp_path}", "data.root=r", "train.global_batch_size=4",
        "train.epochs=50", "method.queue_size=8",
    ])  # fmt: skip


def create_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return TrainState(model, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False))


def enter(
    stack: ExitStack, settings: config.RunSettings, start: StartMode = NEW, *, progress: bool = True
) -> TrainingSession:
    split = load_manifest(settings.data, ("train",))["train"]
    job = Job(split=split, facts=facts_of(settings, split), create_state=create_state, notices=["a notice"])
    return open_session(stack, RunContext(settings, progress=progress), job, start)


def test_open_session__what_is_saved_is_resumed(
    settings: config.RunSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        session = enter(stack, settings)
        assert session.checkpoint is None
        nn.init.constant_(session.state.model.weight, 7.0)  # type: ignore[arg-type]
        session.state.step = 3
        session.save(session.state, best=0.5)
    content = load_checkpoint(settings.out / "checkpoints", pytest.fail)
    assert (content["step"], content["best"], content["processes"], content["manifest_rows"]) == (3, 0.5, 1, 8)
    assert "a notice" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="holds a run"), ExitStack() as stack:
        enter(stack, settings)
    with ExitStack() as stack:
        session = enter(stack, settings, StartMode(resume=True), progress=False)
        assert (session.start_step, session.checkpoint["best"]) == (3, 0.5)  # type: ignore[index]
        assert torch.equal(session.state.model.weight, torch.full((1, 2), 7.0))
    assert capsys.readouterr().err == ""  # without progress
    assert (settings.out / "log.txt").read_text().count("a notice") == 2
    assert json.loads((settings.out / "status.json").read_text())["state"] == "done"


def test_open_session__resuming_without_a_checkpoint_starts_from_step_0(settings: config.RunSettings) -> None:
    for start in (NEW, StartMode(resume=True)):
        with ExitStack() as stack:
            assert enter(stack, settings, start).start_step == 0
    assert "holds no checkpoint yet: starting from step 0" in (settings.out / "log.txt").read_text()
