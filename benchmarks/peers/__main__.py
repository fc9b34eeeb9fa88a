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
_FEW = 512  # images of the short trainings from which the time of an epoch is computed


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
    init: Path | None  # folder that `medmoco import` wrote

    @property
    def gray(self) -> tuple[float, float]:
        """Mean and standard deviation of gray levels from 0 to 1: those of the weights to start from."""
        if self.init is None:
            return films.MEAN, films.STD
        stated = json.loads((self.init / "import.json").read_text(encoding="utf-8"))["preparation"]
        return stated["mean"], stated["std"]

    @property
    def weights(self) -> Path | None:
        """File of the weights to start from."""
        return self.init and self.init / "encoder.safetensors"


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
    out.mkdir(parents=True, exist_ok=True)
    with (terms.manifest / "train.csv").open(newline="", encoding="utf-8") as stream:
        paths = [f"{terms.root.replace('{split}', 'train')}/{row['Path']}" for row in csv.DictReader(stream)]
    if name == OWN:
        _train_own(out, len(paths), terms, overrides)
    else:
        _train_peer(PEERS[name], out, paths, terms)


def _train_own(out: Path, images: int, terms: Terms, overrides: Sequence[str]) -> None:
    start = [f"model.init={terms.weights}", f"views.mean={terms.gray[0]}", f"views.std={terms.gray[1]}"]
    given = [
        f"data.manifest={terms.manifest}", f"data.root={terms.root}", f"model.backbone={terms.backbone}",
        f"views.size={terms.size}", f"seed={terms.seed}", *(start if terms.init else []), *overrides,
    ]  # fmt: skip
    probe = out / "probe"
    command = [sys.executable, "-m", "benchmarks.peers.train_medmoco", CONFIG]
    _run([*command, probe, *given, "train.epochs=1", "train.warmup_epochs=0"], out)
    _run([*command, out, *given, f"train.epochs={_epochs([probe], images, terms)}"], out)


def _train_peer(peer: Peer, out: Path, paths: Sequence[str], terms: Terms) -> None:
    listed = out / "films.txt"
    command = [
        python_of(peer, terms.environments), "-m", f"benchmarks.peers.{peer.script}", "--films", listed,
        "--backbone", terms.backbone, "--size", terms.size, "--seed", terms.seed, "--method", peer.method,
        "--gray", *terms.gray, *(["--lr", terms.lr] if terms.lr else []),
        *(["--init", terms.weights] if terms.init else []),
    ]  # fmt: skip
    listed.write_text("\n".join(paths[:_FEW]), encoding="utf-8")
    probes = [out / "probe", out / "probe-twice"]
    for epochs, folder in zip((2, 4), probes, strict=True):  # schedules of some libraries need more than one
        _run([*command, "--epochs", epochs, "--out", folder], out)
    listed.write_text("\n".join(paths), encoding="utf-8")
    _run([*command, "--epochs", _epochs(probes, len(paths), terms), "--out", out], out)
    mean, std = terms.gray
    medmoco.import_weights(out / "encoder.pt", out / "imported", backbone=terms.backbone, mean=mean, std=std)


def _epochs(probes: Sequence[Path], images: int, terms: Terms) -> int:
    """Return how many epochs fit into the minutes, after one short training, or two, of which the start cancels out."""
    known = [json.loads((probe / "time.json").read_text(encoding="utf-8")) for probe in probes]
    seconds, trained = (known[-1][name] - sum(each[name] for each in known[:-1]) for name in ("seconds", "images"))
    return max(2, int(60 * terms.minutes * trained / seconds / images + 0.5))


def _run(command: Sequence[object], out: Path) -> None:
    """Run a command with its output in log.txt."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        found = subprocess.run([str(part) for part in command], cwd=out, env=environment, stdout=log, stderr=log)
    if found.returncode:
        sys.exit(f"{out.name} failed; its log is {out / 'log.txt'}")


def _check_start(parser: argparse.ArgumentParser, init: Path | None) -> None:
    """Refuse weights whose normalisation is unknown before anything is installed or trained."""
    record = init and init / "import.json"
    if record and not record.is_file():
        parser.error(f"--init {init} is not an import; make it by medmoco import FILE --out {init}")
    if record and json.loads(record.read_text(encoding="utf-8"))["preparation"]["mean"] is None:
        parser.error(f"--init {init} does not state how images were normalised; import again with --mean M --std S")


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
    parser.add_argument(
        "--init", type=lambda text: Path(text).absolute(), help="folder of imported weights to start from"
    )
    parser.add_argument("overrides", nargs="*", help="settings of medmoco, KEY=VALUE")
    given = vars(parser.parse_intermixed_args())
    name, out, overrides = given.pop("name"), given.pop("out").absolute(), given.pop("overrides")
    _check_start(parser, given["init"])
    given["manifest"] = given["manifest"].absolute()
    given["environments"] = given["environments"].absolute()
    terms = Terms(**given)
    os.sched_setaffinity(0, terms.cores)  # child processes inherit it
    os.environ["OMP_NUM_THREADS"] = str(len(terms.cores))
    torch.set_num_threads(len(terms.cores))
    train(name, out, terms, overrides)


if __name__ == "__main__":
    main()
