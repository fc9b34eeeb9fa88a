"""How long commands take to start, relative to importing torch: their imports, and pretraining to its first step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.turns import seconds_per_round, spread
from medmoco.datasets.phantoms.phantom import phantom

ROUNDS = 5
STATEMENTS = {
    "import torch": "import torch",
    "libraries of pretrain": "import torch._dynamo, torch.utils.tensorboard, timm, pandas, pydicom.pixels, cv2",
    "medmoco --help": "import medmoco.cli",
    "medmoco split": "import medmoco; medmoco.split",
    "medmoco check": "import medmoco.data.quality.audit, medmoco.evaluation.leakage.shortcuts",
    "medmoco pack": "import medmoco.data.pack.pack_writing",
    "medmoco slurm": "import medmoco.training.slurm",
    "medmoco report": "import medmoco.reporting.report",
    "medmoco pretrain": "import medmoco.training.pretrain",
    "medmoco evaluate": "import medmoco; medmoco.evaluate",
    "medmoco export": "import medmoco; medmoco.export",
}
FIRST_STEP = "pretrain, to first step"
CONFIG = """
out: {folder}/run
data: {{manifest: {folder}/phantoms, root: "{folder}/phantoms/{{split}}", canvas_size: 64, workers: 0}}
views: {{size: 64}}
method: {{queue_size: 32}}
train: {{global_batch_size: 16, log_every: 1, knn_every: 0}}
"""


def run() -> None:
    """Print the median seconds of each, and its ratio to importing torch: median [lowest-highest] over the rounds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        phantom(folder / "phantoms", patients=30, image_size=64, formats=["png"])
        (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
        starts = {
            name: partial(subprocess.run, [sys.executable, "-c", statement], check=True)
            for name, statement in STATEMENTS.items()
        } | {FIRST_STEP: partial(to_first_step, folder / "config.yaml")}
        times = seconds_per_round(starts, ROUNDS)
    print(f"\nstarting a command\n{'':24} {'seconds':>18}   relative to import torch")
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["import torch"], strict=True)]
        print(f"{name:24} {spread(seconds, 2):>18}   {spread(ratios, 2)}")


def to_first_step(config: Path) -> None:
    """Run `medmoco pretrain` until it prints its first step.

    Raises:
        RuntimeError: it ended before; the message is what it printed.
    """
    command = [sys.executable, "-c", "from medmoco.cli import main; main()", "pretrain"]
    options = ["--config", str(config), "--overwrite"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        said = []
        for line in run.stdout or ():
            said.append(line)
            if line.startswith("step 1/"):
                run.kill()
                return
    raise RuntimeError("".join(said))
