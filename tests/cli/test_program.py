from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

import medmoco
from medmoco import cli
from tests.helpers.commands import Call, refused, start

COMMANDS = {
    "config", "phantom", "split", "check", "preview", "pack", "bench", "pretrain", "tune", "slurm", "evaluate",
    "finetune", "predict", "embed", "curve", "external", "neighbours", "projection", "placement", "saliency",
    "reconstruct", "prepare", "report", "export", "import", "verify", "detect", "segment", "doctor", "models", "init",
    "demo",
}  # fmt: skip


def test_commands__are_what_the_help_lists() -> None:
    group: Any = typer.main.get_command(cli.app)
    assert set(group.commands) == COMMANDS
    text = start("--help").stdout
    assert all(f" {name} " in text for name in COMMANDS)


def test_help__no_text_is_taken_for_markup() -> None:
    """Help is printed by rich, which drops "[default: x]" as it would [bold]."""
    group: Any = typer.main.get_command(cli.app)
    texts = [parameter.help or "" for command in group.commands.values() for parameter in command.params]
    assert len(texts) > 100
    assert not [text for text in texts if Text.from_markup(text).plain != text]


def test_help__describes_every_argument_and_option() -> None:
    group: Any = typer.main.get_command(cli.app)
    parameters = [(name, parameter) for name, command in group.commands.items() for parameter in command.params]
    assert not [f"{name} {parameter.name}" for name, parameter in parameters if not (parameter.help or "").strip()]


@pytest.mark.slow
def test_whole_journey__phantoms_to_export(call: Call, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    call("phantom", "--out", data, "--patients", 24, "--image-size", 64)
    file = tmp_path / "settings.yaml"
    file.write_text(f"""
out: {run}
data: {{manifest: {data}, root: '{data}/{{split}}', labels: [Opacity, Interstitial], canvas_size: 40, workers: 1}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 16}}
train: {{epochs: 2, global_batch_size: 8, lr: 0.03, knn_every: 1}}
evaluate: {{bootstrap: 100}}
""")
    said = call("check", "--config", file).stdout
    assert "checked and not found: file missing" in said
    assert f"no faults; the report and the list of rows are in {tmp_path / 'run-check'}" in said
    call("preview", "--config", file, "--out", tmp_path / "views.png", "--images", 2, "--views", 3)
    made = start("pretrain", "--config", file, f"data.pack={tmp_path / 'pack'}")
    assert f"data.pack: {tmp_path / 'pack'} does not exist" in made.stderr
    assert "to train from it, set data.pack=" in call("pack", "--config", file, "--out", tmp_path / "pack").stdout
    call("evaluate", "--config", file, "--encoder", run, "--out", run / "evaluation", f"data.pack={tmp_path / 'pack'}")
    call("export", "--run", run, "--out", tmp_path / "export")
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert {record["encoder"] for record in scores} == {"run", "untrained", "pixels"}
    assert {"encoder.safetensors", "encoder.onnx", "preprocessing.json", "parity.json", "MODEL_CARD.md"} <= {
        path.name for path in (tmp_path / "export").iterdir()
    }


def test_version__is_that_of_the_package(call: Call) -> None:
    assert call("--version").stdout == f"medmoco {medmoco.__version__}\n"


def test_main__an_unknown_command_is_refused(call: Call) -> None:
    refused(call, ["evaluat"], 2, "No such command")


@pytest.mark.parametrize("name", ["random.py", "copy/__init__.py"])
def test_main__processes_that_it_starts_run_no_modules_of_the_working_folder(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    child = [sys.executable, "-c", "import random, copy"]
    assert subprocess.run(child, check=False).returncode == 7
    call("--help")
    assert subprocess.run(child, check=False).returncode == 0


def test_main__what_nobody_foresaw_is_a_sentence_and_its_traceback_is_kept(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied, of 'P0017'")

    monkeypatch.setattr("medmoco.config.describe", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = call("config", "--config", "configs/cxr.yaml", code=1).stderr
    assert said.startswith("medmoco: unexpected RuntimeError: mat1 and mat2 shapes cannot be multiplied, of ...\n")
    assert "Traceback" not in said
    (kept,) = tmp_path.glob("medmoco-*.txt")
    assert str(kept) in said
    assert "in fail" in kept.read_text()
    assert "P0017" not in kept.read_text().split("raise RuntimeError")[1].partition("\n")[2]
