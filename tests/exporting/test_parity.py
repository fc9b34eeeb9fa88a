from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.errors import CheckpointError
from medmoco.exporting import parity, reload
from medmoco.exporting.parity import (
    GRAPH_TOLERANCE,
    NotInstalledError,
    compare,
    load_cases,
    save_cases,
    synthetic_views,
)
from tests.helpers.made_files import write_linear_onnx

IMAGES = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).standard_normal((16, 5)).astype(np.float32)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return write_linear_onnx(tmp_path, WEIGHTS)


def expected() -> np.ndarray:
    return IMAGES.reshape(3, 16) @ WEIGHTS


def check(file: Path, features: np.ndarray) -> dict[str, Any]:
    return compare("onnx", file.parent, IMAGES, {"features": features})


def test_compare__same_features(onnx_file: Path) -> None:
    record = check(onnx_file, expected())
    assert (record["format"], record["path"], record["outputs"]) == ("onnx", "encoder.onnx", ["features"])
    assert set(record["libraries"]) == {"numpy", "onnxruntime"}
    assert record["half_precision"] == {}
    assert record["max_relative_difference"] < 1e-6


def test_compare__differences_are_measured(onnx_file: Path) -> None:
    shifted = expected()
    shifted[1, 2] += 0.5 * GRAPH_TOLERANCE * np.abs(shifted).max()
    record = check(onnx_file, shifted)
    assert record["max_relative_difference"] == pytest.approx(0.5 * GRAPH_TOLERANCE, rel=0.02)
    assert record["max_absolute_difference"] == pytest.approx(0.5 * GRAPH_TOLERANCE * np.abs(shifted).max(), rel=0.02)


@pytest.mark.parametrize("factor", [2, np.nan])
def test_compare__one_other_feature_is_refused(onnx_file: Path, factor: float) -> None:
    other = expected()
    other[2, 4] += factor * GRAPH_TOLERANCE * np.abs(other).max()
    with pytest.raises(CheckpointError, match="gives other outputs"):
        check(onnx_file, other)


def test_compare__another_width_is_refused(onnx_file: Path) -> None:
    with pytest.raises(CheckpointError, match="of shape"):
        check(onnx_file, expected()[:, :1])


def test_compare__unreadable_file_is_refused_with_the_reason(onnx_file: Path) -> None:
    onnx_file.write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match=r"(?s)cannot be loaded in a new process.*ONNXRuntimeError") as error:
        check(onnx_file, expected())
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize(("bit_depth", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_synthetic_views__are_the_same_each_time(bit_depth: int, dtype: type) -> None:
    views = synthetic_views(32, bit_depth)
    assert views.shape == (4, 1, 32, 32)
    assert views.dtype == dtype
    np.testing.assert_array_equal(views, synthetic_views(32, bit_depth))
    assert views.max() > 0.7 * np.iinfo(dtype).max
    assert views.min() < 0.3 * np.iinfo(dtype).max
    assert not np.array_equal(views[0], views[1])


@pytest.mark.parametrize("library", ["medmoco", "torch"])
def test_compare__a_format_that_needs_more_than_its_library_is_refused(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    answer = {"float32/features": expected()}, {"onnxruntime": "1", library: "1"}
    monkeypatch.setattr(parity, "_in_new_process", lambda *_: answer)
    with pytest.raises(CheckpointError, match=f"loaded with {library}"):
        check(onnx_file, expected())


def test_compare__half_precision_is_measured_and_not_judged(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = onnx_file.with_name("preprocessing.json")
    content = json.loads(contract.read_text())
    content["formats"]["onnx"]["precisions"] = ["float32", "bfloat16", "float16", "float8"]
    contract.write_text(json.dumps(content))
    half = expected()[: reload.HALF_IMAGES]
    largest = float(np.abs(half).max())
    infinite = half.copy()
    infinite[0, 0] = np.inf
    answer = {
        "float32/features": expected(), "bfloat16/features": half + 0.5 * largest, "float16/features": infinite,
    }, {}  # fmt: skip
    monkeypatch.setattr(parity, "_in_new_process", lambda *_: answer)
    found = check(onnx_file, expected())["half_precision"]
    assert found["bfloat16"] == pytest.approx(0.5, rel=1e-5)
    assert found["float16"] == "not finite"
    assert found["float8"] == "not supported"


def test_compare__absent_library_is_not_a_failure(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = onnx_file.with_name("reload.py")
    script.write_text("import sys; print('nolibrary', file=sys.stderr); sys.exit(3)")
    monkeypatch.setattr(parity.reload, "__file__", str(script))
    with pytest.raises(NotInstalledError, match="nolibrary"):
        check(onnx_file, expected())


def test_cases__are_kept(tmp_path: Path) -> None:
    save_cases(tmp_path / "cases", IMAGES, {"features": expected().T.T})
    images, outputs = load_cases(tmp_path / "cases")
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(outputs["features"], expected())


def test_synthetic_views__of_volumes() -> None:
    views = synthetic_views(32, 8, 2, dimensions=3)
    assert views.shape == (2, 1, 32, 32, 32)
    assert views.dtype == np.uint8
    assert (views == synthetic_views(32, 8, 2, dimensions=3)).all()
    assert views.std() > 20
    assert not (views[0] == views[1]).all()
    steps = [np.abs(np.diff(views.astype(float), axis=axis)).mean() for axis in (2, 3, 4)]
    assert max(steps) < 1.2 * min(steps) < views.std()  # as smooth along each axis
