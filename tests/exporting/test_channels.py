"""From files of several channels to a verified export: what no test of one stage sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco import config
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import SettingsError
from medmoco.evaluation.evaluate import evaluate
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.monitor import knn_monitor
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.exporting.contract import preprocessing
from medmoco.exporting.export import export
from medmoco.exporting.subject import subject_of
from medmoco.exporting.verify import verify
from medmoco.inspection.neighbours import neighbours
from medmoco.inspection.projection import projection
from medmoco.inspection.retrieval import placement
from medmoco.inspection.saliency import saliency
from medmoco.training.pretrain import pretrain
from tests.helpers.shipped import shipped

RGB = [
    "data.channels=rgb",
    "views.recipe=moco_v2",
    "views.mean=[0.485, 0.456, 0.406]",
    "views.std=[0.229, 0.224, 0.225]",
]
BANDS = ["data.channels=5", "data.scale=log", "data.band_ranges=[[0.1, 1000]]", "views.std=[0.2, 0.2, 0.2, 0.2, 0.3]"]


def write_photo(file: Path, rng: np.random.Generator, label: int) -> None:
    photo = cv2.resize(rng.integers(0, 256, (6, 7, 3), np.uint8), (70, 60))
    photo[..., 2] = np.clip(photo[..., 2].astype(int) + 90 * label, 0, 255)
    cv2.imwrite(str(file.with_suffix(".jpg")), photo)


def write_bands(file: Path, rng: np.random.Generator, label: int) -> None:
    bands = 10 ** (cv2.resize(rng.normal(0, 1, (6, 7, 5)), (50, 50)) + label)
    bands[0, 0] = -1
    np.save(file.with_suffix(".npy"), bands.astype(np.float32))


def write_data(folder: Path, write: Callable[[Path, np.random.Generator, int], None], suffix: str) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, count in {"train": 16, "val": 8}.items():
        rows = ["Path,PatientID,Finding"]
        for number in range(count):
            write(folder / f"{split}-{number}", rng, number % 2)
            rows.append(f"{split}-{number}{suffix},{split}-{number // 2},{number % 2}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")


def settings_of(folder: Path, overrides: list[str]) -> config.RunSettings:
    given = [
        f"out={folder / 'run'}", f"data.manifest={folder / 'data'}", f"data.root={folder / 'data'}",
        "data.labels=[Finding]", "data.canvas_size=48", "data.workers=0", "views.size=32", "model.backbone=resnet10t",
        "method.queue_size=8", "train.global_batch_size=4", "train.epochs=1", "train.warmup_epochs=0",
        "train.device=cpu", "evaluate.bootstrap=100",
    ]  # fmt: skip
    return config.load(None, [*given, *overrides])


def test_image__gray_files_for_a_network_of_colours(tmp_path: Path) -> None:
    """Also with one mean for all channels, which does not make three planes of one."""
    gray = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8), (70, 60))
    cv2.imwrite(str(tmp_path / "gray.png"), gray)
    encoder = load_encoder("random", settings_of(tmp_path, ["data.channels=rgb", "views.mean=0.5", "views.std=0.25"]))
    contract = preprocessing(subject_of(encoder), {}, tmp_path)
    prepared = shipped().image(tmp_path / "gray.png", contract)
    assert prepared.shape == (3, 32, 32)
    np.testing.assert_array_equal(prepared, encoder.preprocess(tmp_path / "gray.png"))


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "suffix"), [(RGB, ".jpg"), (BANDS, ".npy")], ids=["rgb", "bands"])
def test_channels__from_files_to_a_verified_export(tmp_path: Path, overrides: list[str], suffix: str) -> None:
    write_data(tmp_path / "data", write_photo if suffix == ".jpg" else write_bands, suffix)
    pack = tmp_path / "pack"
    plain = settings_of(tmp_path, overrides)
    channels = plain.data.channel_count
    assert make_pack(plain.data, pack, lambda _: None) == 0
    assert np.load(pack / "shard-00000.npy").shape == (24, 48, 48, channels)
    assert json.loads((pack / "pack.json").read_text())["format"] == 2

    settings = settings_of(tmp_path, [*overrides, f"data.pack={pack}"])
    pretrain(settings, monitor=knn_monitor)
    evaluate(settings, {"run": str(settings.out)}, tmp_path / "scores")
    with pytest.raises(SettingsError, match=r"data\.channels: run"):
        evaluate(settings_of(tmp_path, []), {"run": str(settings.out)}, tmp_path / "other")

    sources = {
        "encoder": load_encoder(settings.out),
        "classifier": load_classifier(tmp_path / "scores/classifier"),
    }
    for name, source in sources.items():
        export(source, tmp_path / name, ["safetensors", "onnx"], warn=lambda _: None)
        verify(tmp_path / name, log=lambda _: None)
        contract = json.loads((tmp_path / name / "preprocessing.json").read_text())
        assert contract["input"]["shape"] == ["batch", channels, 32, 32]
        image = shipped().image(tmp_path / f"data/train-0{suffix}", contract)
        expected = source.preprocessing
        assert image.shape == (channels, 32, 32)
        check_range(image, expected.means, expected.stds)

    check_pictures(settings, tmp_path, coloured=suffix == ".jpg")


def check_pictures(settings: config.RunSettings, folder: Path, *, coloured: bool) -> None:
    """Look at what the encoder sees: pictures are as coloured as the images."""
    run = str(settings.out)
    saliency(settings, folder / "scores/classifier", folder / "saliency.png", [2, 3], "Finding")
    placement(settings, {"run": run}, folder / "placement", perturbations=["flip"])
    projection(settings, run, folder / "projection", split="train")
    neighbours(settings, run, folder / "neighbours.png", [2, 3], count=2)
    pixels = cv2.imread(str(folder / "neighbours.png"))
    assert pixels is not None
    assert (np.ptp(pixels.astype(int), axis=2).max() > 60) == coloured


def check_range(image: NDArray[Any], means: list[float], stds: list[float]) -> None:
    shares = image * np.reshape(stds, (-1, 1, 1)) + np.reshape(means, (-1, 1, 1))
    assert -1e-6 <= shares.min() < 0.3 < shares.max() <= 1 + 1e-6
