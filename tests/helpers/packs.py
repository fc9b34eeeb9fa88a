"""Images, a manifest and the settings to pack them, small enough for a shard to hold three canvases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco import config
from medmoco.data.pack import pack_writing
from medmoco.data.pack.pack_writing import make_pack

SIDE = 32
PER_SHARD = 3


def make_images(folder: Path, **counts: int) -> None:
    """Write `counts` images of different shapes for each split, and its CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        names = [f"{split}-{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            Image.fromarray(rng.integers(0, 256, (40, 30 + number), dtype=np.uint8)).save(folder / name)
        write_csv(folder, split, names)


def write_csv(folder: Path, split: str, names: list[str]) -> None:
    (folder / f"{split}.csv").write_text("\n".join(["Path", *names]))


def settings_for(folder: Path, *overrides: str) -> config.RunSettings:
    base = [
        f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder}", f"data.canvas_size={SIDE}",
        "data.workers=1", "views.size=24", "train.device=cpu",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_writing, "SHARD_BYTES", PER_SHARD * SIDE**2)


def pack(folder: Path, out: Path, *overrides: str) -> tuple[int, list[str]]:
    """Make a pack; return the number of failures and what was said."""
    said: list[str] = []
    return make_pack(settings_for(folder, *overrides).data, out, said.append), said


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
