"""What each library is given: the films, the network, and a place for the trained encoder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

MEAN, STD = 0.449, 0.226  # ImageNet's averages over the channels, so that gray levels stay equal in all three


@dataclass(frozen=True)
class Task:
    """The arguments of a training script."""

    films: list[Path]
    backbone: str
    size: int  # pixels of a view
    epochs: int
    seed: int
    workers: int
    method: str  # of libraries that have several
    lr: float | None  # instead of the documented learning rate
    init: Path | None  # gray weights to start from, as `medmoco import` writes them
    gray: list[float]  # mean and standard deviation of a channel
    out: Path

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the three channels, from 0 to 1."""
        return (self.gray[0],) * 3

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the three channels."""
        return (self.gray[1],) * 3

    def network(self) -> Any:
        """Return the timm network to start from, (B, 3, S, S) -> (B, F)."""
        torch.manual_seed(self.seed)
        network = timm.create_model(self.backbone, num_classes=0)
        if self.init:
            wanted = network.state_dict()
            state = {name: _colour(value, wanted[name]) for name, value in load_file(self.init).items()}
            network.load_state_dict(state)
        return network

    def save(self, encoder: nn.Module, seconds: float, images: int) -> None:
        """Write the encoder, and how long the training took for how many images."""
        torch.save(encoder.state_dict(), self.out / "encoder.pt")
        write_time(self.out, seconds, images)


class Films(Dataset[Any]):
    """The films as RGB images, transformed; read in every epoch, as the libraries' own data sets do."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Any]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.files[index]) as film:
            return self.transform(film.convert("RGB"))


def _colour(value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Spread the kernels of a gray channel over three, so that gray images give the same outputs."""
    return value if value.shape == wanted.shape else value.expand_as(wanted) / wanted.shape[1]


def read_task() -> Task:
    """Read the arguments of a training script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=Path, required=True, help="text file with one path per line")
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--method", default="")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--gray", type=float, nargs=2, default=[MEAN, STD])
    parser.add_argument("--out", type=Path, required=True)
    given = vars(parser.parse_args())
    given["films"] = [Path(line) for line in given["films"].read_text(encoding="utf-8").splitlines()]
    given["out"].mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given["seed"])
    return Task(**given)


def clock() -> Callable[[], float]:
    """Return a function that returns the seconds since now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def write_time(out: Path, seconds: float, images: int) -> None:
    """Record how long the training took, for how many images."""
    record = {"seconds": seconds, "images": images, "threads": torch.get_num_threads()}
    (out / "time.json").write_text(json.dumps(record), encoding="utf-8")
