"""timm: the same file as safetensors, which has timm's names, read by timm itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoco.exporting.subject import NETWORK_PRECISIONS, Subject, refuse_all_but_timm, save_state, written

refusal = refuse_all_but_timm


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the state dict; the format safetensors shares the file."""
    return [save_state(subject.state, folder / f"{subject.stem}.safetensors")]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it: by timm's own checkpoint_path, which loads with strict=True."""
    build = subject.build
    arguments = written(build["arguments"])
    return {
        "library": "timm",
        "precisions": list(NETWORK_PRECISIONS),
        "load": [
            f'net = timm.create_model("{build["name"]}", {arguments}, checkpoint_path="{subject.stem}.safetensors")',
            "outputs = net.eval()(images)",
        ],
    }
