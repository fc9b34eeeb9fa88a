from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medmoco
from medmoco.errors import Stopped
from tests.helpers.commands import Call


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
    command = [sys.executable, "-m", "medmoco", "pretrain", "--config", "configs/demo.yaml", *overrides]
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
    assert "Resume with: medmoco pretrain --config configs/demo.yaml" in said
    assert "Traceback" not in said
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert len(list((out / "checkpoints").glob("*.pt"))) == 1


TINY = """
out: run
data: {manifest: data, root: 'data/{split}', canvas_size: 40, workers: 1}
views: {size: 32}
model: {backbone: test_resnet}
method: {queue_size: 16}
train: {epochs: 5, global_batch_size: 8, device: cpu}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with phantoms and medmoco.yaml, which is the working folder meanwhile."""
    monkeypatch.chdir(tmp_path)
    medmoco.phantom("data", patients=24, image_size=64)
    (tmp_path / "medmoco.yaml").write_text(TINY)
    return tmp_path


@pytest.mark.slow
def test_processes__without_config_all_of_them_read_medmoco_yaml(
    tiny: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    for words in (["pretrain", "--devices", "2", "--dry-run"], ["pretrain", "--devices", "2", "train.epochs=1"]):
        command = [sys.executable, "-m", "medmoco", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if "--dry-run" in words:
            assert "expected duration: about " in done.stdout
            assert done.stdout.splitlines()[-1] == "next: medmoco pretrain --devices 2"
            assert not Path("run").exists()
        else:
            assert done.stdout.splitlines()[-1].startswith("next: medmoco export --run run")
        assert not [path for path in temporary.iterdir() if path.name.startswith("medmoco")]
    shutil.rmtree(temporary)


def test_dry_run__that_is_stopped_cannot_be_resumed(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped("stopped after step 1 of 20; everything is saved")

    monkeypatch.setattr("medmoco.training.pretrain.training_batches", stop)
    assert call("pretrain", "--dry-run", code=75).stderr.endswith("the dry run was stopped; it left nothing behind\n")
    assert "Resume with: medmoco pretrain --resume" in call("pretrain", code=75).stderr


SLOW = """
import sys, time
from medmoco.data.loading import loading
from medmoco.data.quality import examine
from medmoco.evaluation.features import feature_tables
from medmoco.cli import main

def slowly(module, name):
    real = getattr(module, name)
    setattr(module, name, lambda *given, **options: (time.sleep(0.1), real(*given, **options))[1])

if sys.argv.pop(1) == "slow":
    slowly(examine, "read_as_set")
    slowly(loading, "read_canvas")
examine.BLOCK = feature_tables.BLOCK = 4
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("check", signal.SIGTERM), ("check", signal.SIGKILL), ("embed", signal.SIGTERM)]
)
def test_check_and_embed__resume_after_a_signal_to_the_whole_process_group(
    tmp_path: Path, name: str, number: signal.Signals
) -> None:
    rows = ["Path"]
    for row in range(40):
        pixels = np.random.default_rng(row).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    settings = [
        f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}", "data.workers=2", "data.canvas_size=32",
        "views.size=32", "evaluate.batch_size=2", "model.backbone=test_resnet",
    ]  # fmt: skip
    options = ["--encoder", "random", "--split", "train"] if name == "embed" else []

    def start(speed: str, out: Path) -> subprocess.Popen[str]:
        arguments = [name, "--config", "configs/demo.yaml", *settings, *options, "--out", str(out)]
        command = [sys.executable, "-c", SLOW, speed, *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    whole, resumed = (tmp_path / f"{which}{'.npz' * (name == 'embed')}" for which in ("whole", "resumed"))
    assert start("fast", whole).communicate()[1] is not None
    kept = resumed / "unfinished" if name == "check" else tmp_path / "resumed.npz.unfinished"
    process = start("slow", resumed)
    deadline = time.monotonic() + 120
    while len(list(kept.glob("*.npz"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 75), said
    assert number == signal.SIGKILL or "finished blocks are kept.\nRun the same command to continue." in said
    assert "Traceback" not in said
    finished = len(list(kept.glob("*.npz")))
    process = start("fast", resumed)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert f"{4 * finished} of 40 images are already finished" in said
    assert not kept.exists()
    if name == "check":
        assert {file.name: file.read_bytes() for file in resumed.iterdir()} == {
            file.name: file.read_bytes() for file in whole.iterdir()
        }
    else:
        assert resumed.read_bytes() == whole.read_bytes()
