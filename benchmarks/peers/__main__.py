"""Train one library after another for the same time on the same cores, or score what they trained."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import medmoco
from benchmarks.peers import films

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs/cxr.yaml"
_FEW = 512  # images from which the time of an epoch is computed


@dataclass(frozen=True)
class Peer:
    """A library and a method of it."""

    package: str  # on PyPI, with its version
    script: str
    method: str = ""


PEERS = {
    "lightly": Peer("lightly==1.6.0", "train_lightly"),
    "lightly-train-dino": Peer("lightly-train==0.18.0", "train_lightly_train", "dino"),
    "lightly-train-simclr": Peer("lightly-train==0.18.0", "train_lightly_train", "simclr"),
    "stable-pretraining": Peer("stable-pretraining==0.1.8", "train_stable_pretraining"),
}
OWN = "medmoco"


@dataclass(frozen=True)
class Terms:
    """What is equal for all."""

    manifest: Path
    root: str
    backbone: str
    size: int
    minutes: float
    cores: tuple[int, ...]
    environments: Path
    seed: int
    lr: float | None


def python_of(peer: Peer, folder: Path) -> Path:
    """Return the interpreter of a library's environment, which is created if it does not exist."""
    home = folder / peer.package.partition("==")[0]
    if not (home / "bin/python").exists():
        venv.create(home, with_pip=True)
        subprocess.run(
            [home / "bin/pip", "install", "--quiet", "torch", "torchvision", "timm", peer.package], check=True
        )
    return home / "bin/python"


def train(name: str, out: Path, terms: Terms, overrides: Sequence[str]) -> None:
    """Train a library, or medmoco, for the given time; `out` then holds its encoder and time.json."""
    probe = out / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    listed = out / "films.txt"
    with (terms.manifest / "train.csv").open(newline="", encoding="utf-8") as stream:
        paths = [f"{terms.root.replace('{split}', 'train')}/{row['Path']}" for row in csv.DictReader(stream)]
    if name == OWN:
        script = [sys.executable, "-m", "benchmarks.peers.train_medmoco", CONFIG]
        given = [
            f"data.manifest={terms.manifest}", f"data.root={terms.root}", f"model.backbone={terms.backbone}",
            f"views.size={terms.size}", f"seed={terms.seed}", *overrides,
        ]  # fmt: skip
        _run([*script, probe, *given, "train.epochs=1", "train.warmup_epochs=0"], out)
        _run([*script, out, *given, f"train.epochs={_epochs(probe, len(paths), terms)}"], out)
        return
    peer = PEERS[name]
    command = [
        python_of(peer, terms.environments), "-m", f"benchmarks.peers.{peer.script}", "--films", listed, "--backbone",
        terms.backbone, "--size", terms.size, "--seed", terms.seed, "--method", peer.method,
        *(["--lr", terms.lr] if terms.lr else []),
    ]  # fmt: skip
    listed.write_text("\n".join(paths[:_FEW]), encoding="utf-8")
    _run([*command, "--epochs", 3, "--out", probe], out)  # schedules of some libraries need more than one
    listed.write_text("\n".join(paths), encoding="utf-8")
    _run([*command, "--epochs", _epochs(probe, len(paths), terms), "--out", out], out)
    medmoco.import_weights(
        out / "encoder.pt", out / "imported", backbone=terms.backbone, mean=films.MEAN[0], std=films.STD[0]
    )


def _epochs(probe: Path, images: int, terms: Terms) -> int:
    """Return how many epochs fit into the minutes at the speed of a first, short training."""
    taken = json.loads((probe / "time.json").read_text(encoding="utf-8"))
    return max(2, int(60 * terms.minutes * taken["images"] / taken["seconds"] / images + 0.5))


def _run(command: Sequence[object], out: Path) -> None:
    """Run a command with its output in log.txt."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        found = subprocess.run([str(part) for part in command], cwd=out, env=environment, stdout=log, stderr=log)
    if found.returncode:
        sys.exit(f"{out.name} failed; its log is {out / 'log.txt'}")


def main() -> None:
    """Read the arguments, and train."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("name", choices=[OWN, *PEERS])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--root", required=True, help="folder of the images, with {split}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True, help="folder of the virtual environments")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--cores", type=lambda text: tuple(map(int, text.split(","))), default=(0,))
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, help="instead of the documented learning rate of a library")
    parser.add_argument("overrides", nargs="*", help="settings of medmoco, KEY=VALUE")
    given = vars(parser.parse_intermixed_args())
    name, out, overrides = given.pop("name"), given.pop("out").absolute(), given.pop("overrides")
    given["manifest"] = given["manifest"].absolute()
    given["environments"] = given["environments"].absolute()
    terms = Terms(**given)
    os.sched_setaffinity(0, terms.cores)  # child processes inherit it
    os.environ["OMP_NUM_THREADS"] = str(len(terms.cores))
    torch.set_num_threads(len(terms.cores))
    train(name, out, terms, overrides)


if __name__ == "__main__":
    main()
