from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import medmoco
from medmoco.cli import main
from medmoco.errors import CheckpointError, SettingsError


def weights(run: medmoco.Run) -> dict[str, torch.Tensor]:
    (file,) = sorted((run.folder / "checkpoints").glob("*.pt"))[-1:]
    model: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["model"]
    return model


def test_run__stands_for_its_path(workspace: Path) -> None:
    run = medmoco.Run("runs/phantoms")
    assert os.fspath(run) == "runs/phantoms"
    assert run.settings.train.epochs == 2
    assert run.metrics["step"].is_monotonic_increasing
    assert "done" in repr(run)
    assert run.encoder.embed("phantoms/test").shape[1] == run.encoder.feature_dim


def test_run__refuses_another_folder(workspace: Path) -> None:
    with pytest.raises(CheckpointError, match="phantoms is not a run folder"):
        medmoco.Run("phantoms")


def test_pretrain__gives_the_weights_of_the_command(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medmoco", "pretrain", "--config", "config.yaml", "out=runs/command"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "run folder: runs/command" in capsys.readouterr().out
    ours, commands = weights(medmoco.Run("runs/phantoms")), weights(medmoco.Run("runs/command"))
    assert ours.keys() == commands.keys()
    assert all(torch.equal(value, commands[name]) for name, value in ours.items())


def test_pretrain__resumes_and_refuses_as_the_command_does(workspace: Path) -> None:
    settings = medmoco.load_config("config.yaml", out="runs/resumed", train={"epochs": 1})
    medmoco.pretrain(settings, progress=False)
    longer = medmoco.load_config(settings, train={"epochs": 2})
    with pytest.raises(SettingsError, match="holds a run"):
        medmoco.pretrain(longer, progress=False)
    run = medmoco.pretrain(longer, resume=True, progress=False)
    assert run.status["step"] == run.status["steps"]


def test_pretrain__is_silent_if_asked_to(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = medmoco.pretrain(medmoco.load_config("config.yaml", out="runs/silent"), progress=False)
    assert capsys.readouterr() == ("", "")
    assert "pretraining test_resnet" in (run.folder / "log.txt").read_text()


def test_finetune__returns_the_classifier_it_leaves(workspace: Path) -> None:
    classifier = medmoco.finetune("config.yaml", medmoco.Run("runs/phantoms"), "runs/tuned-in-a-test", progress=False)
    again = medmoco.load_classifier("runs/tuned-in-a-test/classifier")
    found, expected = classifier.predict("phantoms/val"), again.predict("phantoms/val")
    assert found.equals(expected)
    assert list(found.columns) == ["row", "Opacity", "Interstitial"]
