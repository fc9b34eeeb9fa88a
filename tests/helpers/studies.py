"""Studies with made features, for tests of scores without images and encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, load

CLASSES = ("Bacterial", "Normal", "Viral")
SKILL = {"run": 1.6, "untrained": 0.6, "pixels": 0.3}


@dataclass(frozen=True)
class MadeSplit:
    """As much of a split as scores need."""

    rows: NDArray[np.int64]
    patients: NDArray[np.int64]
    labels: NDArray[np.float32]
    label_names: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.rows)


def made_settings(tmp_path: Path, *more: str) -> RunSettings:
    paths = [f"out={tmp_path}", f"data.manifest={tmp_path}", f"data.root={tmp_path}"]
    return load(None, [*paths, "evaluate.bootstrap=200", "evaluate.classes=Class", "evaluate.targets=[Age]", *more])


def made_study(sizes: dict[str, int] | None = None) -> Any:
    """Three classes and an age of two images for each patient, a tenth of them missing, and features that tell both."""
    splits, values, features = {}, {}, {name: {} for name in SKILL}
    for number, (name, size) in enumerate((sizes or {"train": 240, "val": 120, "test": 130}).items()):
        generator = np.random.default_rng([5, number])
        codes = np.repeat(generator.choice(3, p=[0.5, 0.3, 0.2], size=size), 2)[:size]
        labels = np.eye(3, dtype=np.float32)[codes]
        ages = generator.normal(50, 15, size)
        for encoder, skill in SKILL.items():
            found = generator.normal(size=(size, 12))
            found[:, :3] += skill * labels
            found[:, 3] += skill * (ages - 50) / 15
            features[encoder][name] = found.astype(np.float32)
        labels[generator.random(size) < 0.1] = np.nan
        ages[generator.random(size) < 0.1] = np.nan
        splits[name] = MadeSplit(2 + np.arange(size), 1000 * number + np.arange(size) // 2, labels)
        values[name] = ages
    scored = [name for name in splits if name != "train"]
    return SimpleNamespace(
        splits=splits, values={"Age": values}, features=features, encoders=list(SKILL), scored=scored,
        leaks=dict.fromkeys(scored), others={},
    )  # fmt: skip
