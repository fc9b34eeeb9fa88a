"""What tests of several exporting modules make and compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from medmoco.exporting.subject import Subject
from medmoco.models.backbones import Backbone, load_weights


def write_linear_onnx(folder: Path, weights: NDArray[np.float32]) -> Path:
    """Write features = flatten(image) @ weights for images of 4 x 4 pixels, and its contract beside it."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes, "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    file = folder / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    contract = {
        "input": {"name": "image"}, "outputs": [{"name": "features"}],
        "formats": {"onnx": {"path": "encoder.onnx", "precisions": ["float32"]}},
    }  # fmt: skip
    (folder / "preprocessing.json").write_text(json.dumps(contract))
    return file


def assert_comes_back_in(file: Path, subject: Subject, other: Backbone) -> None:
    """Load a weights file into another encoder, emptied before; the features are the subject's."""
    images = torch.randn(2, 1, 32, 32)
    expected = subject.backbone(images)
    for parameter in other.parameters():
        parameter.zero_()
    load_weights(other, file)
    torch.testing.assert_close(other(images), expected, rtol=0, atol=1e-6)
