from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medmoco import config
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import whole_view
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.exporting.contract import files_in, libraries, preprocessing
from medmoco.exporting.subject import Subject, subject_of

Plane = NDArray[np.float64]


def make_settings(*overrides: str) -> config.RunSettings:
    given = ["out=run", "data.manifest=data", "data.root=data", "model.backbone=resnet18", "views.size=32"]
    return config.load(None, [*given, *overrides])


def make_contract(settings: config.RunSettings, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "export"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "encoder.onnx").write_bytes(b"weights")
    described = {"onnx": {"path": "parts", "load": ["go"]}}
    content: dict[str, Any] = json.loads(json.dumps(preprocessing(make_subject(settings), described, folder)))
    return content


def make_subject(settings: config.RunSettings) -> Subject:
    return subject_of(load_encoder("random", settings))


# ---- a stranger's code: it knows the file and the JSON, and nothing of medmoco ----


def _halved(image: Plane, wanted: int) -> Plane:
    while max(image.shape) >= 2 * wanted:
        height, width = (side // 2 * 2 for side in image.shape)
        even = image[:height, :width]
        image = np.floor((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4 + 0.5)
    return image


def _area(side: int, target: int) -> Plane:
    """Return (target, side): the share of each old pixel in each new one."""
    edges = np.arange(target + 1) * side / target
    starts, ends = edges[:-1, None], edges[1:, None]
    overlap = np.minimum(ends, np.arange(side) + 1) - np.maximum(starts, np.arange(side))
    shares: Plane = np.clip(overlap, 0, None) * target / side
    return shares


def _bilinear(side: int, positions: Plane) -> Plane:
    weights = np.zeros((len(positions), side))
    for i, position in enumerate(positions):
        low = int(np.floor(position))
        for index, share in ((low, low + 1 - position), (low + 1, position - low)):
            weights[i, min(max(index, 0), side - 1)] += share
    return weights


def _as_a_stranger(pixels: Plane, bits: int, contract: dict[str, Any]) -> Plane:
    canvas, resize, normalise = contract["canvas"], contract["resize"], contract["normalise"]
    longer = max(pixels.shape)
    height, width = (max(1, round(side * canvas["longer_side"] / longer)) for side in pixels.shape)
    image = _halved(pixels, canvas["longer_side"])
    if longer > canvas["longer_side"]:
        rows, columns = _area(image.shape[0], height), _area(image.shape[1], width)
    else:
        rows, columns = (
            _bilinear(side, (np.arange(target) + 0.5) * side / target - 0.5)
            for side, target in zip(image.shape, (height, width), strict=True)
        )
    image = np.rint(np.rint(rows @ image @ columns.T) * canvas["white"] / (2**bits - 1))
    image = _halved(image, resize["height"])
    rows, columns = (
        _bilinear(side, (np.arange(target) + 0.5) * side / target - 0.5)
        for side, target in zip(image.shape, (resize["height"], resize["width"]), strict=True)
    )
    return (np.rint(rows @ image @ columns.T) / canvas["white"] - normalise["mean"]) / normalise["std"]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize(
    ("shape", "canvas_size"), [((301, 200), 48), ((131, 90), 100), ((40, 47), 64), ((300, 300), 256), ((64, 64), 64)]
)
def test_preprocessing__is_enough_for_a_stranger(
    tmp_path: Path, shape: tuple[int, int], canvas_size: int, bits: int, bit_depth: int
) -> None:
    settings = make_settings(f"data.canvas_size={canvas_size}", f"data.bit_depth={bit_depth}", "views.mean=0.4")
    small = np.random.default_rng(3).random((6, 5))
    smooth = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_LINEAR) * (2**bits - 1)
    stored = smooth.astype(np.uint8 if bits == 8 else np.uint16)
    file = tmp_path / "image.png"
    cv2.imwrite(str(file), stored)

    canvas = to_canvas(read_image(file), settings.data.canvas_size, settings.data.bit_depth)
    view = torch.from_numpy(whole_view(canvas, settings.views.size))[None, None]
    ours = to_float(view, settings.views, torch.device("cpu"), channels_last=False)[0, 0].numpy()
    theirs = _as_a_stranger(stored.astype(np.float64), bits, make_contract(settings, tmp_path))

    level = 1 / 255 / settings.views.std
    assert ours.shape == theirs.shape == (32, 32)
    assert np.abs(ours - theirs).max() <= 1.01 * level
    assert np.abs(ours - theirs).mean() <= 0.25 * level
    # The test can fail: the usual habits of others are far off.
    kept_aspect = cv2.resize(stored, (32, 32), interpolation=cv2.INTER_NEAREST)[::-1]
    assert np.abs(ours - (kept_aspect / (2**bits - 1) - 0.485) / 0.229).mean() > 5 * level


def test_preprocessing__names_what_is_fed(tmp_path: Path) -> None:
    contract = make_contract(make_settings("data.window=[40, 400]", "data.bit_depth=16"), tmp_path)
    assert contract["input"] == {"name": "image", "shape": ["batch", 1, 32, 32], "dtype": "float32", "layout": "NCHW"}
    assert contract["model"]["feature_dim"] == contract["outputs"][0]["shape"][1] == 512
    assert contract["formats"] == {"onnx": {"path": "parts", "load": ["go"]}}
    assert contract["licence"] == "not stated"
    assert contract["canvas"]["white"] == 65535
    assert contract["grayscale"]["window"] == [40, 400]
    assert "[centre, width]" in contract["grayscale"]["window_rule"]
    assert "MONOCHROME1" in contract["grayscale"]["polarity"]
    assert contract["files"] == {"parts/encoder.onnx": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}}


@pytest.mark.parametrize("window", ["voi", "full"])
def test_preprocessing__explains_each_window(tmp_path: Path, window: str) -> None:
    grayscale = make_contract(make_settings(f"data.window={window}"), tmp_path)["grayscale"]
    assert grayscale["window"] == window
    assert ("VOI LUT" in grayscale["window_rule"]) == (window == "voi")


@pytest.mark.parametrize("mirror", [False, True])
def test_preprocessing__size_and_mirror_are_those_of_the_scores(tmp_path: Path, mirror: bool) -> None:
    contract = make_contract(make_settings("evaluate.size=64", f"evaluate.mirror={mirror}"), tmp_path)
    assert contract["input"]["shape"] == ["batch", 1, 64, 64]
    assert contract["resize"]["height"] == contract["resize"]["width"] == 64
    assert contract["mirror"]["average"] is mirror
    assert ("mean features" in contract["mirror"]["rule"]) is mirror


def test_preprocessing__of_a_classifier_says_what_its_outputs_mean(tmp_path: Path) -> None:
    encoder = make_subject(make_settings("evaluate.mirror=true"))
    line = {"kind": "platt", "slope": 1.5, "intercept": 0.5}
    facts = {
        "labels": ["A", "B"], "exclusive": True, "label_policies": {}, "trained": "fine-tuned",
        "calibration": {"A": line, "B": line}, "operating_points": {"A": [], "B": []}, "secret": "not to be copied",
    }  # fmt: skip
    head = torch.nn.Linear(encoder.backbone.feature_dim, 2)
    contract = preprocessing(replace(encoder, head=head, classifier=facts), {}, tmp_path)
    assert [(output["name"], output["shape"]) for output in contract["outputs"]] == [
        ("logits", ["batch", 2]), ("probabilities", ["batch", 2]),
    ]  # fmt: skip
    assert contract["classifier"]["calibration"] == facts["calibration"]
    assert "softmax" in contract["classifier"]["logits_rule"]
    assert "average the network's outputs over both" in contract["mirror"]["rule"]
    assert "secret" not in json.dumps(contract)
    assert contract["model"]["arguments"]["num_classes"] == 2


def test_files_in__at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/c", "a"):
        (tmp_path / name).touch()
    assert files_in(tmp_path) == ["a", "b/c"]


def test_libraries__are_named_with_versions() -> None:
    found = libraries()
    assert set(found) == {
        "python", "medmoco", "torch", "timm", "monai", "numpy", "cv2", "safetensors", "onnx", "onnxruntime",
    }  # fmt: skip
    assert found["torch"] == torch.__version__
