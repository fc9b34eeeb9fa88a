from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import load_manifest
from medmoco.datasets.collections import medmnist
from medmoco.datasets.prepare import prepare
from tests.helpers.dataset_files import refusal


def test_prepare__png_files_and_labels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 5, "val": 3, "test": 2}.items():
        arrays[f"{split}_images"] = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 3
    np.savez_compressed(tmp_path / "some.npz", **arrays)
    out = tmp_path / "out"
    prepare("medmnist", tmp_path / "some.npz", out)
    data = DataSettings.model_validate({"manifest": out, "root": str(out), "labels": ["label_0", "label_2"]})
    loaded = load_manifest(data)
    assert {name: split.labels.tolist() for name, split in loaded.items()}["train"] == [
        [1, 0],
        [0, 0],
        [0, 1],
        [1, 0],
        [0, 0],
    ]
    for name, split in loaded.items():
        check_files(split, data)
        for file, image in zip(split.files, arrays[f"{name}_images"], strict=True):
            with Image.open(file) as opened:
                np.testing.assert_array_equal(np.asarray(opened), image)


def test_prepare__many_findings_and_colours(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((4, 28, 28, 3), (9, 99, 199), np.uint8)
        arrays[f"{split}_labels"] = np.eye(4, 14, dtype=np.uint8)
    np.savez(tmp_path / "some.npz", **arrays)
    out = tmp_path / "out"
    prepare("medmnist", tmp_path / "some.npz", out)
    assert list(pd.read_csv(out / "val.csv").columns) == ["Path", *(f"label_{number}" for number in range(14))]
    with Image.open(out / "images/test/000003.png") as opened:
        assert opened.getpixel((3, 3)) == (9, 99, 199)


def npz(**changes: Any) -> bytes:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": np.zeros((2, 28, 28), np.uint8), f"{split}_labels": np.zeros((2, 1), np.uint8)}
    file = io.BytesIO()
    np.savez_compressed(file, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"no archive", "not a MedMNIST .npz file"),
        (npz()[:-30], "not a MedMNIST .npz file"),
        (npz(val_labels=None), "(KeyError)"),
        (npz(train_labels=np.array([[{"a": 1}], [2]], object)), "(ValueError)"),  # would need pickle
        (npz(train_images=np.zeros((2, 28, 28, 28), np.uint8)), "volumes cannot be written"),
        (npz(train_images=np.zeros((2, 28, 28))), "not 8-bit images"),
        (npz(train_labels=np.zeros((3, 1), np.uint8)), "do not fit"),
    ],
)
def test_prepare__refused(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "some.npz").write_bytes(content)
    assert part in refusal("medmnist", tmp_path / "some.npz")


def test_prepare__a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.npz").write_bytes(npz(train_images=np.zeros((500, 28, 28), np.uint8)))
    monkeypatch.setattr(medmnist, "inflation_limit", lambda size: 20 * size)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was opened"))
    assert "far more than a file of images does" in refusal("medmnist", tmp_path / "some.npz")
