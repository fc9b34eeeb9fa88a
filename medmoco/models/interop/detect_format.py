"""Detect the format of a weights file: where the encoder is, how its tensors are named, and which network it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import timm
import torch
from torch import Tensor

from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.interop.layouts import arranged
from medmoco.models.interop.naming import (
    TABLES,
    VARIANTS,
    from_hub,
    in_hub,
    into_hub,
    kind_of,
    naming_of,
)
from medmoco.models.interop.schemes import NAMES, SCHEMES, Scheme, asked_out, other_content, prefixes, roles, unwrapped
from medmoco.models.interop.state_dicts import Contents

Which = Literal["query", "key"]

# Networks to compare with the shapes in a file if the network is not given.
_CANDIDATES = {
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
               "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "resnet10t", "resnet14t", "resnet26",
               "resnet50d"),
    "densenet": ("densenet121", "densenet169", "densenet201", "densenet161"),
    "vit": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224",
            "vit_small_patch32_224", "vit_base_patch32_224", "vit_large_patch32_224", "vit_small_patch8_224",
            "vit_base_patch8_224", "vit_huge_patch14_224"),
    "dinov2": tuple(f"vit_{size}_patch14_{kind}" for size in ("small", "base", "large")
                    for kind in ("dinov2", "reg4_dinov2")),
    "convnext": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    "efficientnet": ("tf_efficientnet_lite0", "tf_efficientnet_b0"),
}  # fmt: skip

NAME_IT = "It has the shapes of a {}: use that name (model.backbone, or --backbone)."


@dataclass(frozen=True)
class Found:
    """The requested encoder in a file."""

    scheme: Scheme  # checkpoint format of the file
    which: Which  # which of its encoders
    prefix: str  # prefix of the encoder's keys
    naming: str  # library whose names follow the prefix
    kind: str  # type of network; "" if there is no table for it
    names: dict[str, str]  # key -> timm's name, for all keys with the prefix; the rest of the key if it is in no table
    others: frozenset[str] = frozenset()  # keys of the other encoder


def find(
    contents: Contents,
    *,
    which: Which = "query",
    scheme: str | None = None,
    leave_out: tuple[str, ...] = (),
    backbone: str | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> Found:
    """Find the encoder in a file: the format, prefix and naming that match most of its keys.

    Args:
        contents: Contents of the file.
        which: Encoder to use if the file has two.
        scheme: Name of the checkpoint format, if the keys alone are ambiguous.
        leave_out: Patterns of keys to ignore.
        backbone: Name of the expected network.
        own: State dict of that network; without it, all types of network with a table are tried.

    Raises:
        SettingsError: the format is unknown.
        CheckpointError: no encoder is found, or two prefixes match equally well.
    """
    if scheme is not None and scheme not in NAMES:
        raise SettingsError(f"scheme '{scheme}' is unknown; known are: {', '.join(NAMES)}")
    keys = [key for key in contents.tensors if not asked_out(key, leave_out)]
    candidates = prefixes(keys)
    ranked: list[tuple[int, Found]] = []
    for one in SCHEMES:
        if scheme in (None, one.name):
            for prefix in roles(one, keys, candidates).get(which, ()):
                ranked += _explained(keys, one, which, prefix, backbone, own)
    top = max((score for score, _ in ranked), default=0)
    if top == 0:
        other = own and network_of(contents, which, scheme, leave_out)
        raise CheckpointError(
            f"weights file {contents.name} does not contain a {backbone}. {NAME_IT.format(other)}"
            if other
            else _nothing_found(contents, which)
        )
    found, *equal = [found for score, found in ranked if score == top]
    rivals = {other.prefix for other in equal if other.scheme is found.scheme} - {found.prefix}
    if rivals:
        raise CheckpointError(
            f"weights file {contents.name} contains several encoders that match equally well, such as"
            f" '{found.prefix}' and '{min(rivals)}'.\nOmit the others: medmoco import --leave-out '{min(rivals)}*'"
        )
    elsewhere = roles(found.scheme, keys, candidates).get("key" if which == "query" else "query", [])
    return replace(found, others=frozenset(key for prefix in elsewhere for key in _of_other(keys, prefix, found)))


def _explained(
    keys: list[str], scheme: Scheme, which: Which, prefix: str, backbone: str | None, own: Mapping[str, Tensor] | None
) -> Iterator[tuple[int, Found]]:
    """Yield for each type of network and naming the number of keys with a prefix that they match."""
    ends = {key: unwrapped(key[len(prefix) :]) for key in keys if key.startswith(prefix)}
    for kind in TABLES if backbone is None else (kind_of(backbone) or "",):
        tables = TABLES.get(kind, {})
        namings = ("timm", *(naming for naming in tables if naming != "tensorflow"))
        for naming in namings if scheme.naming is None else tables.keys() & {scheme.naming}:
            hub = {key: into_hub(end, kind, naming) for key, end in ends.items()}
            names = {key: name for key, name in hub.items() if name is not None}
            if own is None:
                score = sum(in_hub(name, kind) for name in names.values())
            else:
                score = sum(own_name(name, kind, backbone or "") in own for name in names.values())
            yield score, Found(scheme, which, prefix, naming, kind, names)


def own_name(name: str, kind: str, backbone: str) -> str | None:
    """Return the name that a tensor of timm has in a backbone of medmoco."""
    return from_hub(name, kind, naming_of(backbone)) if kind else name


def _of_other(keys: list[str], prefix: str, found: Found) -> list[str]:
    """Return the keys with another encoder's prefix; if that is empty, those with names in a table."""
    if prefix:
        return [key for key in keys if key.startswith(prefix) and not (found.prefix and key.startswith(found.prefix))]
    naming = found.naming
    return [key for key in keys if naming != "timm" and into_hub(key, found.kind, naming)]


def _nothing_found(contents: Contents, which: Which) -> str:
    keys = list(contents.tensors)
    shown = ", ".join(repr(key) for key in dict.fromkeys([keys[0], keys[len(keys) // 2], keys[-1]]))
    lines = [f"weights file {contents.name} contains no known encoder; its {len(keys)} keys include: {shown}"]
    if which == "key":
        lines.append("Most files contain a single encoder, which is found without --which key.")
    lines.append(f"Supported formats are {', '.join(NAMES)} (docs/import.md).")
    lines.append("Rename the keys as in timm or torchvision, or give the name of the timm network: --backbone NAME.")
    return "\n".join(lines)


def network_of(contents: Contents, which: Which, scheme: str | None, leave_out: tuple[str, ...]) -> str | None:
    """Return the name of the network in a file, or None if it is not recognised."""
    try:
        found = find(contents, which=which, scheme=scheme, leave_out=leave_out)
    except CheckpointError:
        return None
    return recognise(contents, found, leave_out)


def recognise(contents: Contents, found: Found, leave_out: tuple[str, ...] = ()) -> str | None:
    """Return the network whose tensors have the names and shapes in a file, or None if there is none."""
    # In timm's names, networks that differ from tf_efficientnet_b0 and -lite0 in their padding have the same tensors.
    if not found.kind or (found.kind == "efficientnet" and found.naming == "timm"):
        return None
    chosen = {
        key: name
        for key, name in found.names.items()
        if not other_content(key, found.prefix, found.scheme, leave_out) or in_hub(name, found.kind)
    }
    hub = arranged(contents.tensors, chosen, found.naming)
    shapes = {hub.names[key]: tuple(value.shape) for key, value in hub.tensors.items()}
    for name in _CANDIDATES[found.kind]:
        outline = _outline(name)
        needed = {key: shape for key, shape in outline.items() if not other_content(key, "", SCHEMES[-1], ())}
        if shapes.keys() <= outline.keys() and all(_alike(shapes.get(key), key, needed[key]) for key in needed):
            break
    else:
        return None
    if any(own == "pos_embed" and fixed_as_in_moco_v3(contents.tensors[key]) for key, own in found.names.items()):
        return next((variant for variant, (plain, _) in VARIANTS.items() if plain == name), name)
    return f"monai/{name}" if found.naming == "monai" else name


@cache
def _outline(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors without allocating them."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in timm.create_model(name).state_dict().items()}


def _alike(shape: tuple[int, ...] | None, name: str, expected: tuple[int, ...]) -> bool:
    """Return whether a tensor's shape matches; input channels and image size may differ, and counters be missing."""
    if shape is None:
        return name.endswith("num_batches_tracked")
    first_layer = len(expected) == 4 and expected[1] == 3 and (shape[0], *shape[2:]) == (expected[0], *expected[2:])
    return shape == expected or first_layer or (name == "pos_embed" and shape[2:] == expected[2:])


def fixed_as_in_moco_v3(positions: Tensor) -> bool:
    """Return whether position embeddings, (1, T, F), are the fixed sines and cosines of moco-v3.

    Source: vits.py of facebookresearch/moco-v3: columns first, then rows; zero for the class token.
    """
    side, width = math.isqrt(max(positions.shape[1] - 1, 0)), positions.shape[-1]
    if positions.ndim != 3 or side**2 + 1 != positions.shape[1] or width % 4:
        return False
    grid = torch.arange(side, dtype=torch.float64)
    waves = grid[:, None] / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    columns, rows = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    patches = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1)
    expected = torch.cat([torch.zeros(1, width), patches])
    return torch.allclose(positions[0].double(), expected, atol=1e-3)
