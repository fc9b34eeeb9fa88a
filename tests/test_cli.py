from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pytest
from PIL import Image

from medmoco import cli

COMMANDS = {
    "config", "phantom", "split", "check", "preview", "pack", "bench", "pretrain", "slurm", "evaluate", "finetune",
    "predict", "curve", "external", "neighbours", "projection", "placement", "saliency", "report", "export", "import",
    "verify", "detect",
}  # fmt: skip


OF_CXR = ["--config", "configs/cxr.yaml", "--encoder", "random"]


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run medmoco as a user does, in a process of its own; importing all it needs takes that some seconds."""
    command = [sys.executable, "-m", "medmoco.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


class Said(NamedTuple):
    stdout: str
    stderr: str


class Call(Protocol):
    def __call__(self, *arguments: object, code: int = 0) -> Said:
        """Run medmoco with the arguments of a command line; it must end with `code`."""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs medmoco's command line in this process."""

    def run(*arguments: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["medmoco", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = Said(*capsys.readouterr())
        assert (ended.value.code or 0) == code, said.stderr
        return said

    return run


def test_commands__are_what_the_help_lists() -> None:
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == COMMANDS
    text = start("--help").stdout
    assert all(f" {name} " in text for name in COMMANDS)


def test_config__prints_the_tree() -> None:
    out = start("config", "--config", "configs/cxr.yaml", "train.lr=0.5").stdout
    assert "lr: 0.5" in out
    assert "# command line" in out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["config", "--config", "absent.yaml"], 2, "settings file absent.yaml does not exist"),
        (["config", "--config", "configs/cxr.yaml", "trian.lr=1"], 2, "did you mean 'train'?"),
        (["pretrain", "--config", "configs/cxr.yaml", "data.manifest=absent"], 3, "absent does not exist"),
        (["export", "--run", "absent", "--out", "x"], 4, "no run folder"),
        (["split", "--csv", "absent.csv", "--out", "x"], 3, "absent.csv: cannot be opened"),
        (["split", "--csv", "a.csv", "--out", "x", "--fractions", "1;5"], 2, "'1;5' is not a list of numbers"),
        (["pack", "--config", "configs/cxr.yaml"], 2, "give --out, or set data.pack"),
        (["pack", "--config", "configs/cxr.yaml", "data.pack=s3://b/p"], 2, "give --out, or set data.pack"),
        (["predict", "--config", "configs/cxr.yaml", "--classifier", "x", "--out", "y"], 4, "no classifier folder"),
        (["config", "--config", "configs/cxr.yaml", "model.weights=w.pth"], 2, "known: backbone, init"),
        (["import", "w.pth", "--out", "x"], 4, "weights file w.pth does not exist"),
        (["import", "w.pth", "--out", "x", "--which", "teacher"], 2, "name query, or key for the moving average"),
        (["evaluat"], 2, "No such command"),
        (["neighbours", *OF_CXR, "--out", "a.png", "--rows", "3;7"], 2, "'3;7' is not a list of row numbers"),
        (["neighbours", *OF_CXR, "--out", "a.png", "--rows", "3", "--bank", "valid"], 2, "'valid' is no split"),
        (["placement", *OF_CXR, "--out", "a", "--twin", "spin"], 2, "there is flip, rotate"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    said = call(*arguments, code=code).stderr
    assert expected in said
    assert "Traceback" not in said
    if code != 2 or arguments[0] == "config":
        assert len(said.splitlines()) <= 5


def test_split__writes_the_files_and_says_their_sizes(call: Call, tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{number // 2},{number % 2},{number % 3 - 1}\n" for number in range(200))
    (tmp_path / "all.csv").write_text(f"Path,Person,A,B\n{rows}")
    options = ["--labels", "A, B", "--group", "Person", "--val", 0.2, "--fractions", "10, 50"]
    out = call("split", "--csv", tmp_path / "all.csv", "--out", tmp_path / "out", *options, "--seed", 3).stdout
    assert "val 40 rows of 20 patients, test 40 rows of 20 patients, train_10 12 rows of 6 patients" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"train.csv", "val.csv", "test.csv", "train_10.csv", "train_50.csv", "README.md"}


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
    assert "looked for and not found: file missing" in said
    assert f"no faults; the report and the list of rows are in {tmp_path / 'run-check'}" in said
    call("preview", "--config", file, "--out", tmp_path / "views.png", "--images", 2, "--views", 3)
    made = start("pretrain", "--config", file, f"data.pack={tmp_path / 'pack'}")
    assert f"data.pack: {tmp_path / 'pack'} is not there yet or unfinished; making it first" in made.stderr
    assert "use it with data.pack=" in call("pack", "--config", file, "--out", tmp_path / "pack").stdout
    call("evaluate", "--config", file, "--encoder", run, "--out", run / "evaluation", f"data.pack={tmp_path / 'pack'}")
    call("export", "--run", run, "--out", tmp_path / "export")
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert {record["encoder"] for record in scores} == {"run", "untrained", "pixels"}
    assert {"encoder.safetensors", "encoder.onnx", "preprocessing.json", "parity.json", "MODEL_CARD.md"} <= {
        path.name for path in (tmp_path / "export").iterdir()
    }


def test_check__ends_with_exit_code_3_after_the_whole_report(call: Call, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for name in ("secret1", "secret2"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("Path,PatientID\nsecret1.png,hidden\n")
    (tmp_path / "test.csv").write_text("Path,PatientID\nsecret2.png,hidden\nsecret3.png,other\n")
    overrides = [f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}"]
    done = call("check", "--config", "configs/demo.yaml", *overrides, "--out", tmp_path / "report", code=3)
    assert "3 rows: train 1 of 1 patients, test 2 of 2 patients" in done.stdout
    for kind in ("file missing", "patient in two splits", "pixels in two splits"):
        assert f"fault             1  {kind}" in done.stdout
        assert kind in done.stderr
    assert done.stderr.startswith("medmoco: faults were found (file missing, ")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stdout + done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert (tmp_path / "report/report.txt").read_text() == done.stdout
    assert (tmp_path / "report/rows.csv").read_text().count("\n") > 3


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_pretrain__a_signal_to_the_whole_process_group_saves_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As Ctrl-C on a terminal and a cluster's end of job do: data workers get the signal too."""
    rows = ["Path"]
    for row in range(16):
        pixels = np.random.default_rng(row).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    out = tmp_path / "run"
    overrides = [
        f"out={out}", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}", "data.workers=2",
        "data.canvas_size=32", "views.size=32", "model.backbone=test_resnet", "method.queue_size=8",
        "method.batch_norm_splits=1", "train.global_batch_size=4", "train.epochs=100000", "train.log_every=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "medmoco.cli", "pretrain", "--config", "configs/demo.yaml", *overrides]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "everything is saved" in said
    assert "Go on with: medmoco pretrain --config configs/demo.yaml" in said
    assert "Traceback" not in said
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert len(list((out / "checkpoints").glob("*.pt"))) == 1


@pytest.mark.slow
def test_evaluate__real_films_give_the_known_score_of_raw_pixels(call: Call, shared: Path, tmp_path: Path) -> None:
    """Viral versus bacterial from 32 x 32 pixels is known to score 0.835 on these 437 test images."""
    data = [f"data.manifest={shared}/data/cxr_dev", f"data.root={shared}/data/cxr_dev/{{split}}", "data.labels=[Viral]"]
    out = tmp_path / "scores"
    call("evaluate", "--config", "configs/cxr.yaml", "--encoder", "random", "--out", out,
         "--test", "evaluate.where=Pneumonia == 1", *data)  # fmt: skip
    records = json.loads((out / "scores.json").read_text())
    found = {(r["encoder"], r["split"]): r for r in records if r["method"] == "linear" and r["label"] == "Viral"}
    pixels = found["pixels", "test"]
    assert (pixels["n"], pixels["n_positive"], pixels["n_patients"]) == (437, 141, 163)
    assert pixels["auroc"] == pytest.approx(0.835, abs=0.01)
    assert pixels["auroc_low"] < pixels["auroc"] < pixels["auroc_high"]
    assert found["untrained", "test"]["auroc"] > 0.7


def test_pack__failed_images_are_exit_code_3_and_training_says_so_too(call: Call, tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "pack"
    call("phantom", "--out", data, "--patients", 10, "--image-size", 64)
    next((data / "train").rglob("*.png")).write_bytes(b"")
    settings = ["--config", "configs/demo.yaml", f"out={tmp_path / 'run'}", f"data.manifest={data}"]
    settings += [f"data.root={data}/{{split}}", "data.labels={}"]
    done = call("pack", "--out", folder, *settings, code=3)
    assert "1 images could not be packed; failed.csv in the pack lists their rows and why" in done.stderr
    assert (folder / "pack.json").is_file()
    assert len(done.stderr.split("medmoco: ")[1].splitlines()) <= 5
    refused = call("pretrain", *settings, f"data.pack={folder}", code=3)
    assert "rows could not be packed (rows " in refused.stderr
    assert len(refused.stderr.splitlines()) <= 5
