"""Translate between the layouts in which libraries store the same tensors, timm's being the hub, as in naming.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_QKV = (".attn.qkv.weight", ".attn.qkv.bias")


class Arranged(NamedTuple):
    """The tensors of a file in timm's layout.

    Attributes:
        tensors: Key in the file -> tensor. A tensor that the file splits has the key of its first part.
        names: Key -> timm's name, for all parts.
        how: Key -> how the tensor was converted, if it was.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    how: dict[str, str]


def arranged(tensors: Mapping[str, Tensor], names: Mapping[str, str], naming: str) -> Arranged:
    """Return tensors in timm's layout.

    Args:
        tensors: Tensors by their key in the file.
        names: Key -> timm's name, for the keys to arrange. Those that differ only in `#0`, `#1` and so on are joined,
            if their shapes agree.
        naming: Library whose layouts they have.
    """
    found = Arranged({}, {key: name.partition("#")[0] for key, name in names.items()}, {})
    groups: dict[str, list[str]] = {}
    for key, name in names.items():
        groups.setdefault(found.names[key] if "#" in name else key, []).append(key)
    for first, *others in groups.values():
        parts = [into_hub_layout(tensors[key], naming, key) for key in sorted([first, *others], key=names.__getitem__)]
        if parts[0].shape != tensors[first].shape:
            found.how[first] = "layout turned"
        if others and len({part.shape for part in parts}) == 1:
            found.how.update(dict.fromkeys([first, *others], "query, key and value joined"))
            parts = [torch.cat(parts)]
        found.tensors[first] = parts[0]
    keys = {name: key for key, name in found.names.items()}
    if naming in ("dinov2", "transformers") and {"reg_token", "cls_token", "pos_embed"} <= keys.keys():
        _add_class_position(found, keys["cls_token"], keys["pos_embed"])
    return found


def _add_class_position(found: Arranged, token: str, positions: str) -> None:
    """Add the position of the class token to it, in place: timm's networks with registers have none."""
    own, grid = found.tensors[token], found.tensors[positions]
    if grid.ndim == own.ndim == 3 and math.isqrt(grid.shape[1] - 1) ** 2 == grid.shape[1] - 1:
        found.tensors[token], found.tensors[positions] = own + grid[:, :1], grid[:, 1:].contiguous()
        found.how.update({token: "its position added", positions: "position of the class token added to it"})


def split_parts(state: Mapping[str, Tensor], target: str) -> dict[str, Tensor]:
    """Return timm's tensors by their names, split into `#0`, `#1` and so on where `target` splits them."""
    parts: dict[str, Tensor] = {}
    for name, value in state.items():
        if target == "transformers" and name.endswith(_QKV):
            parts |= {f"{name}#{number}": part for number, part in enumerate(value.chunk(3))}
        else:
            parts[name] = value
    if target in ("dinov2", "transformers") and "reg_token" in state:  # the class token includes its position
        grid = state["pos_embed"]
        parts["pos_embed"] = torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)
    return parts


def into_hub_layout(value: Tensor, source: str, name: str) -> Tensor:
    """Return a tensor from the layout of `source`, where it is called `name`, in timm's layout, contiguous."""
    if source == "tensorflow" and value.ndim == 4:
        value = value.permute(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
    if name.endswith("layer_scale"):
        value = value.flatten()
    return value.contiguous()


def from_hub_layout(value: Tensor, target: str, name: str) -> Tensor:
    """Return a tensor from timm's layout in that of `target`, where it is called `name`."""
    if target == "tensorflow" and value.ndim == 4:
        value = value.permute(2, 3, 1, 0)
    if name.endswith("layer_scale"):
        value = value[:, None, None]
    return value.contiguous()
