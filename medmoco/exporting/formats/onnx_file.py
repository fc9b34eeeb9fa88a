"""ONNX: one file with weights and computation, from images to outputs, for any batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medmoco import __version__
from medmoco.errors import CheckpointError, first_line
from medmoco.exporting.subject import INPUT, Subject

OPSET = 20
LIMIT = 2**31 - 2**20  # bytes of weights in one protobuf file


def refusal(subject: Subject) -> str | None:
    """A protobuf file holds at most 2 GB."""
    weights = sum(value.numel() * value.element_size() for value in subject.backbone.state_dict().values())
    return (
        f"the encoder's {weights / 1e9:.1f} GB exceed the 2 GB that one ONNX file can hold" if weights > LIMIT else None
    )


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the graph with a free batch dimension.

    Raises:
        CheckpointError: torch cannot express the network.
    """
    try:
        program = torch.onnx.export(
            subject.graph, (subject.example,), input_names=[INPUT],
            output_names=list(subject.outputs), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error)
        raise CheckpointError(f"torch cannot export this network to ONNX; nothing was exported\n{reason}") from None
    assert program is not None
    content = program.model_proto
    _strip(content)
    content.producer_name, content.producer_version = "medmoco", __version__
    import onnx  # not at the top: other formats do not need it

    onnx.checker.check_model(content, full_check=True)
    file = folder / f"{subject.stem}.onnx"
    file.write_bytes(content.SerializeToString())
    return [file]


def _strip(message: Any) -> None:
    """Remove the comments of a protobuf message at every depth.

    torch writes stack traces into each node, with paths of this machine.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it."""
    return {
        "library": "onnxruntime",
        "precisions": ["float32"],
        "opset": OPSET,
        "load": [
            f'session = onnxruntime.InferenceSession("{subject.stem}.onnx")',
            f'{", ".join(subject.outputs)} = session.run(None, {{"{INPUT}": images}})'
            + ("[0]" if len(subject.outputs) == 1 else ""),
        ],
    }
