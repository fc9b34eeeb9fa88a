"""timm: the same file as safetensors, for a network of timm is saved under timm's names; timm itself reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoco.exporting.subject import (
    NETWORK_PRECISIONS,
    Subject,
    refuse_all_but_timm,
    save_state,
    written,
)


def refusal(subject: Subject) -> str | None:
    """Networks of MONAI are not timm's."""
    return refuse_all_but_timm(subject)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the state dict; where the format safetensors is asked for too, it is one file."""
    return [save_state(subject.state, folder / _name(subject))]


def describe(subject: Subject) -> dict[str, Any]:
    """Say how it is loaded: by timm's own checkpoint_path, which is strict about every key."""
    build = subject.build
    arguments = written(build["arguments"])
    return {
        "library": "timm",
        "precisions": list(NETWORK_PRECISIONS),
        "load": [
            f'net = timm.create_model("{build["name"]}", {arguments}, checkpoint_path="{_name(subject)}")',
            "outputs = net.eval()(images)",
        ],
    }


def _name(subject: Subject) -> str:
    return f"{subject.stem}.safetensors"
