"""torch.export: a program from images to outputs, for any batch size, which needs PyTorch only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medmoco.errors import CheckpointError, first_line
from medmoco.exporting.subject import Subject

_ABOUT_THIS_MACHINE = ("stack_trace", "custom")


def refusal(subject: Subject) -> str | None:
    """Only tracing shows whether a network can be traced."""
    return None


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the program with a free batch dimension.

    Raises:
        CheckpointError: torch cannot trace the network.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(subject.graph, (subject.example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch raises many, some of them private, if it cannot trace a network
        reason = first_line(error)
        raise CheckpointError(f"torch cannot trace this network as a program; nothing was exported\n{reason}") from None
    _strip(program)
    file = folder / f"{subject.stem}.pt2"
    torch.export.save(program, file)
    return [file]


def _strip(program: torch.export.ExportedProgram) -> None:
    """Remove stack traces, which contain paths of this machine, from every graph of the program."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in _ABOUT_THIS_MACHINE:
                node.meta.pop(key, None)


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it."""
    return {
        "library": "torch",
        "precisions": ["float32"],
        "load": [
            f'program = torch.export.load("{subject.stem}.pt2").module()',
            f"{', '.join(subject.outputs)} = program(images)",
        ],
    }
