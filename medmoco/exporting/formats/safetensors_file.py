"""safetensors: tensors alone, with the names of the plain timm or MONAI network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoco.exporting.subject import (
    NETWORK_PRECISIONS,
    Subject,
    network,
    plain_state,
    refuse_patches,
    save_state,
    written,
)


def refusal(subject: Subject) -> str | None:
    """Every network has a state dict, but for a head of patches."""
    return refuse_patches(subject)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the state dict."""
    return [save_state(plain_state(subject), folder / _name(subject))]


def describe(subject: Subject) -> dict[str, Any]:
    """Say how it is loaded: by building preprocessing.json's "model" and strict about every key."""
    build = network(subject)
    arguments = written(build["arguments"])
    if build["library"] == "timm":
        made = [f'net = timm.create_model("{build["name"]}", {arguments})']
    else:
        made = [f"net = {build['function']}({arguments})"]
        if build["replaced_by_identity"]:
            made.append(f'net.set_submodule("{build["replaced_by_identity"]}", torch.nn.Identity())')
    return {
        "library": build["library"],
        "precisions": list(NETWORK_PRECISIONS),
        "load": [
            *made,
            f'net.load_state_dict(safetensors.torch.load_file("{_name(subject)}"), strict=True)',
            "outputs = net.eval()(images)",
        ],
    }


def _name(subject: Subject) -> str:
    return f"{subject.stem}.safetensors"
