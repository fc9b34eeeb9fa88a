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
from torch import nn
from torch.utils.data import Dataset

MEAN, STD = (0.449,) * 3, (0.226,) * 3  # ImageNet's averages, so that gray levels stay equal in the three channels


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
    out: Path

    def network(self) -> Any:
        """Return the untrained timm network, (B, 3, S, S) -> (B, F)."""
        torch.manual_seed(self.seed)
        return timm.create_model(self.backbone, num_classes=0)

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
