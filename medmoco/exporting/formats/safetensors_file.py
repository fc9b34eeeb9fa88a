"""safetensors: the tensors with the names of the plain network of timm, MONAI or nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoco.exporting.subject import Subject, refuse_other_heads, save_state, written

refusal = refuse_other_heads


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the state dict."""
    return [save_state(subject.state, folder / f"{subject.stem}.safetensors")]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it: into the "model" of preprocessing.json, with strict=True."""
    build = subject.build
    arguments = written(build["arguments"], build.get("classes", ()))
    if build["library"] == "timm":
        stem = _stem(build["conv_stem"], subject.backbone.channels) if "conv_stem" in build else []
        made = [*stem, f'net = timm.create_model("{build["name"]}", {arguments}{", embed_layer=stem" if stem else ""})']
    else:
        made = [f"net = {build['function']}({arguments})"]
        if build["replaced_by_identity"]:
            made.append(f'net.set_submodule("{build["replaced_by_identity"]}", torch.nn.Identity())')
    return {
        "library": build["library"],
        "precisions": subject.precisions,
        "load": [
            *made,
            f'net.load_state_dict(safetensors.torch.load_file("{subject.stem}.safetensors"), strict=True)',
            "outputs = net.eval()(images)",
            *([f"features = {build['features']}"] if build.get("features", "outputs") != "outputs" else []),
        ],
    }


def _stem(widths: list[int], channels: int) -> list[str]:
    """Return code that builds a transformer's convolutional stem from parts of timm."""
    depth = len(widths) - 1
    shape = f"depth={depth + 1}, channels={widths}, kernel_size={[3] * depth + [1]}, stride={[2] * depth + [1]}"
    return [
        "from timm.layers import HybridEmbed",
        "from timm.models.vision_transformer_hybrid import ConvStem",
        f"convolutions = ConvStem(in_chans={channels}, {shape})",
        "stem = lambda img_size, in_chans, embed_dim, **_: HybridEmbed(",
        "    convolutions, img_size, patch_size=1, in_chans=in_chans, embed_dim=embed_dim, proj=False)",
    ]
