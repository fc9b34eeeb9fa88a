"""Makes `old/`: runs, a pack and exports as medmoco wrote them before its modules moved.

Run at commit fbad89f; kept to show how the files were made. Do not update it or run it again: files written by later
code would not show that old ones still load.

    python -m tests.compatibility.make_old

All paths in the files are relative to `old/`, and the images are synthetic.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from medmoco import config
from medmoco.data.loading import read_canvases
from medmoco.data.manifest import load_manifest
from medmoco.data.phantom import make_phantoms

OLD = Path(__file__).with_name("old")
SPLITS = ("train", "val", "test")
SETTINGS = """\
out: run
data:
  manifest: data
  root: data/{split}
  labels: [Opacity, Interstitial]
  canvas_size: 40
  workers: 0
views:
  size: 32
model:
  backbone: test_efficientnet # of those that timm has, the one with the fewest weights
method:
  queue_size: 16
  hidden_dim: 16
  embedding_dim: 16
train:
  epochs: 2
  global_batch_size: 8
  device: cpu
  log_every: 1
  knn_every: 1
evaluate:
  bootstrap: 100
  fractions: [0.5, 1.0]
  subgroups: [Sex]
  least_patients: 2
finetune:
  epochs: 2
  global_batch_size: 8
  least_steps: 1
detection:
  detector: retinanet
  size: 64
  channels: 16
  smallest_anchor: 8
  epochs: 2
  global_batch_size: 8
"""


def medmoco(*words: str) -> None:
    """Run medmoco as a user does, in the folder that all paths are relative to."""
    print("medmoco", *words, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(OLD.parents[2])}
    subprocess.run([sys.executable, "-P", "-m", "medmoco.cli", *words], cwd=OLD, env=environment, check=True)


def keep_last_checkpoint(run: str) -> None:
    for file in sorted((OLD / run / "checkpoints").glob("*.pt"))[:-1]:
        file.unlink()
        file.with_name(f"{file.name}.sha256").unlink()


def make_data(name: str, seed: int) -> None:
    make_phantoms(OLD / name, patients=24, image_size=48, seed=seed, formats=("png",))


def make_runs() -> None:
    settings = ("--config", "settings.yaml")
    medmoco("pack", *settings, "--out", "pack")
    medmoco("pretrain", *settings)
    keep_last_checkpoint("run")
    medmoco("evaluate", *settings, "--encoder", "run", "--out", "run/evaluation", "--test")
    named = ("--encoder", "mine=run", "--encoder", "other=random")
    medmoco("evaluate", *settings, *named, "--out", "evaluation_named")
    shutil.rmtree(OLD / "evaluation_named/classifier")  # the same as in run/evaluation
    medmoco("curve", *settings, "--encoder", "run", "--out", "run/curve", "--draws", "2", "--test")
    other = ("--other", "elsewhere.yaml", "--classifier", "run/evaluation/classifier")
    medmoco("external", *settings, *other, "--out", "run/external")
    medmoco("finetune", *settings, "--encoder", "run", "--out", "finetuned")
    keep_last_checkpoint("finetuned")


def make_detections() -> None:
    settings = ("--config", "settings.yaml")
    medmoco("detect", *settings, "--encoder", "random", "--out", "untrained")
    medmoco("detect", *settings, "--encoder", "run", "--out", "detection", "--against", "untrained")
    for name in ("untrained", "detection/checkpoints"):
        shutil.rmtree(OLD / name)


def make_exports() -> None:
    medmoco("export", "--run", "run", "--out", "export", "--format", "safetensors,timm,onnx")
    medmoco("export", "--classifier", "finetuned/classifier", "--out", "classifier_export", "--format", "safetensors")


def expected() -> dict[str, Any]:
    """Return what loading the files must give."""
    return {
        "canvases": canvas_digests(),
        "probabilities": {name: probabilities(name) for name in ("run/evaluation/classifier", "finetuned/classifier")},
        "losses": {
            "run": losses_once_resumed("run", "pretrain", "out=resumed", "train.epochs=3"),
            "finetuned": losses_once_resumed(
                "finetuned", "finetune", "--encoder", "run", "--out", "resumed", "finetune.epochs=3", "--allow-change"
            ),
        },
    }


def canvas_digests() -> dict[str, list[str]]:
    """Return the SHA-256 of each canvas in the pack, by split."""
    settings = config.load(OLD / "settings.yaml", ["data.pack=pack"])
    splits = load_manifest(settings.data, SPLITS)
    return {name: [digest(canvas) for canvas in read_all(split, settings)] for name, split in splits.items()}


def read_all(split: Any, settings: config.RunSettings) -> list[Any]:
    return read_canvases(split, range(len(split)), settings)[0]


def digest(canvas: Any) -> str:
    return hashlib.sha256(canvas.pixels.tobytes()).hexdigest()


def probabilities(classifier: str) -> list[dict[str, float]]:
    """Return what a classifier makes of the test split."""
    file = OLD / "predicted.csv"
    medmoco("predict", "--config", "settings.yaml", "--classifier", classifier, "--out", file.name)
    with file.open(newline="") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    file.unlink()
    return rows


def losses_once_resumed(run: str, command: str, *words: str) -> list[float]:
    """Return the loss of each step that a copy of a run, called resumed, takes after those that it has."""
    shutil.copytree(OLD / run, OLD / "resumed")
    medmoco(command, "--config", "settings.yaml", "--resume", *words)
    found = [losses(OLD / name / "metrics.jsonl") for name in (run, "resumed")]
    shutil.rmtree(OLD / "resumed")
    return found[1][len(found[0]) :]


def losses(file: Path) -> list[float]:
    records = map(json.loads, file.read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def main() -> None:
    shutil.rmtree(OLD, ignore_errors=True)
    OLD.mkdir()
    os.chdir(OLD)
    (OLD / "settings.yaml").write_text(SETTINGS)
    (OLD / "elsewhere.yaml").write_text(SETTINGS.replace("data", "elsewhere").replace("elsewhere:", "data:"))
    make_data("data", seed=0)
    make_data("elsewhere", seed=1)
    make_runs()
    make_detections()
    make_exports()
    (OLD / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n")
    shutil.rmtree(OLD / "elsewhere")
    (OLD / "elsewhere.yaml").unlink()
    for folder in OLD.glob("**/tensorboard"):  # its files are named after the machine
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
