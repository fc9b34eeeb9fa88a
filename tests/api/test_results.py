from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import medmoco
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import sources_of


def test_sources_of__every_form_of_an_encoder(workspace: Path) -> None:
    run = medmoco.Run("runs/phantoms")
    assert sources_of(run) == sources_of("runs/phantoms") == sources_of(run.encoder) == {"run": "runs/phantoms"}
    untrained = medmoco.load_encoder("random", "config.yaml")
    assert sources_of({"a": run, "b": untrained}) == {"a": "runs/phantoms", "b": "random"}
    weights = Path("export/encoder.safetensors")
    views = {"mean": 0.5, "std": 0.25, "size": 32}
    loaded = medmoco.load_encoder(weights, {"model": {"backbone": "test_resnet"}, "views": views})
    with pytest.raises(SettingsError, match="'mine' was loaded from a weights file; pass the file's path"):
        sources_of({"mine": loaded})


def test_evaluate__without_a_folder_saves_nothing(workspace: Path) -> None:
    before = sorted(path for path in workspace.rglob("*") if path.is_file())
    evaluation = medmoco.evaluate("config.yaml", "runs/phantoms")
    assert sorted(path for path in workspace.rglob("*") if path.is_file()) == before
    saved = medmoco.Evaluation.load("runs/phantoms/evaluation").to_frame()
    expected = saved[saved["split"] == "val"].set_index(["label", "method", "encoder"])["auroc"]
    assert evaluation.to_frame().set_index(["label", "method", "encoder"])["auroc"].equals(expected)


def test_report__takes_one_run_or_several(workspace: Path) -> None:
    run = medmoco.Run("runs/phantoms")
    assert medmoco.report(run, "one.html") == Path("one.html")
    other = shutil.copytree("runs/phantoms", "runs/others")
    assert "others" in medmoco.report([run, other], "two.html").read_text()


def test_sources_of__refuses_an_encoder_that_was_trained_on(workspace: Path) -> None:
    encoder = medmoco.Run("runs/phantoms").encoder
    with torch.no_grad():
        next(encoder.module.parameters()).add_(1)
    with pytest.raises(SettingsError, match="weights of 'mine' have changed since it was loaded"):
        sources_of({"mine": encoder})
