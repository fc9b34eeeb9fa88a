from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from medmoco.errors import CheckpointError
from medmoco.exporting.parity import TOLERANCE, compare, synthetic_views

IMAGES = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).standard_normal((16, 5)).astype(np.float32)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """Write features = flatten(image) @ WEIGHTS, and its contract beside it."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes, "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )  # fmt: skip
    file = tmp_path / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    contract = {"input": {"name": "image"}, "output": {"name": "features"}}
    (tmp_path / "preprocessing.json").write_text(json.dumps(contract))
    return file


def expected() -> np.ndarray:
    return IMAGES.reshape(3, 16) @ WEIGHTS


def test_compare__same_features(onnx_file: Path) -> None:
    record = compare(onnx_file, onnx_file.with_name("preprocessing.json"), IMAGES, expected())
    assert record["file"] == "encoder.onnx"
    assert record["max_relative_difference"] < 1e-6


def test_compare__differences_are_measured(onnx_file: Path) -> None:
    shifted = expected()
    shifted[1, 2] += 0.5 * TOLERANCE * np.abs(shifted).max()
    record = compare(onnx_file, onnx_file.with_name("preprocessing.json"), IMAGES, shifted)
    assert record["max_relative_difference"] == pytest.approx(0.5 * TOLERANCE, rel=0.02)
    assert record["max_absolute_difference"] == pytest.approx(0.5 * TOLERANCE * np.abs(shifted).max(), rel=0.02)


@pytest.mark.parametrize("factor", [2, np.nan])
def test_compare__one_other_feature_is_refused(onnx_file: Path, factor: float) -> None:
    other = expected()
    other[2, 4] += factor * TOLERANCE * np.abs(other).max()
    with pytest.raises(CheckpointError, match="gives other features"):
        compare(onnx_file, onnx_file.with_name("preprocessing.json"), IMAGES, other)


def test_compare__another_width_is_refused(onnx_file: Path) -> None:
    with pytest.raises(CheckpointError, match="of shape"):
        compare(onnx_file, onnx_file.with_name("preprocessing.json"), IMAGES, expected()[:, :1])


def test_compare__unreadable_file_is_refused_with_the_reason(onnx_file: Path) -> None:
    onnx_file.write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match=r"(?s)cannot be loaded back in a new process.*ONNXRuntimeError") as error:
        compare(onnx_file, onnx_file.with_name("preprocessing.json"), IMAGES, expected())
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
