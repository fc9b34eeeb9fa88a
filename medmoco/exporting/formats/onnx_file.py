"""ONNX: one file with the weights inside, from images to outputs, for any number of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from medmoco import __version__
from medmoco.errors import CheckpointError, first_line
from medmoco.exporting.subject import INPUT, Subject

OPSET = 20
LIMIT = 2**31 - 2**20  # bytes of weights that fit into one protobuf file


def refusal(subject: Subject) -> str | None:
    """One protobuf file holds 2 GB."""
    weights = sum(value.numel() * value.element_size() for value in subject.backbone.state_dict().values())
    return (
        f"the encoder's {weights / 1e9:.1f} GB exceed the 2 GB that one ONNX file can hold" if weights > LIMIT else None
    )


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the graph with a free batch dimension.

    Raises:
        CheckpointError: torch cannot express the network.
    """
    size = subject.preprocessing.size
    try:
        program = torch.onnx.export(
            subject.graph, (torch.zeros(2, subject.backbone.channels, size, size),), input_names=[INPUT],
            output_names=list(subject.outputs), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error)
        raise CheckpointError(f"torch cannot write this network as ONNX; nothing was exported\n{reason}") from None
    assert program is not None
    content = program.model_proto
    _strip(content)
    content.producer_name, content.producer_version = "medmoco", __version__
    onnx.checker.check_model(content, full_check=True)
    file = folder / _name(subject)
    file.write_bytes(content.SerializeToString())
    return [file]


def _strip(message: Any) -> None:
    """Remove a protobuf message's comments at every depth.

    torch writes stack traces, and with them the paths of this machine, into each node.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def describe(subject: Subject) -> dict[str, Any]:
    """Say how it is loaded."""
    return {
        "library": "onnxruntime",
        "precisions": ["float32"],
        "opset": OPSET,
        "load": [
            f'session = onnxruntime.InferenceSession("{_name(subject)}")',
            f'{", ".join(subject.outputs)} = session.run(None, {{"{INPUT}": images}})'
            + ("[0]" if len(subject.outputs) == 1 else ""),
        ],
    }


def _name(subject: Subject) -> str:
    return f"{subject.stem}.onnx"
