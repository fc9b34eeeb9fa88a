"""A file of weights to named tensors, with nothing that can run code.

torch.load is only ever told `weights_only=True`, which builds tensors and plain values. Checkpoints of others also hold
what their programs were started with. Where such a type is known to be harmless, its name in the file is answered by a
stand-in that keeps nothing: the type itself is neither imported nor made.
"""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medmoco.errors import CheckpointError, first_line


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        name: Of the file, without its folder.
        tensors: Key -> tensor on the CPU; keys of mappings inside mappings are joined by "/".
        others: Names at the top that stand for no tensor, such as "epoch".
        backbone: The network that the file says its tensors are of, which only files of medmoco do.
    """

    name: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...] = ()
    backbone: str | None = None


class _StandIn:
    """Takes the place of an object that is not wanted."""

    def __new__(cls, *_: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


# Names in the file -> what is made instead. Settings, paths, numbers of NumPy; dictionaries under another name.
_HARMLESS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "argparse.Namespace", "types.SimpleNamespace", "typing.Any",
            *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
            *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
            *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),
            "datetime.datetime", "datetime.timedelta", "numpy.dtype", "numpy.ndarray",
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
            *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
            *(f"omegaconf.base.{name}" for name in ("Metadata", "ContainerMetadata")),
            *(f"omegaconf.nodes.{name}Node" for name in (
                "Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "InterpolationResult", "Path", "String",
            )),
        ),
        _StandIn,
    ),
    "collections.defaultdict": _plain_dict,
    **dict.fromkeys(
        (
            "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
            "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
            "easydict.EasyDict", "addict.addict.Dict",
        ),
        OrderedDict,
    ),
}  # fmt: skip


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies as a file of weights holds them: on the CPU, contiguous, without gradients, sharing nothing."""
    layout = torch.contiguous_format
    return {name: value.detach().cpu().clone(memory_format=layout) for name, value in state.items()}


def read_contents(file: Path) -> Contents:
    """Read .safetensors, .npz, or what torch.save wrote (.pt, .pth, .pth.tar, .ckpt, .bin).

    Raises:
        CheckpointError: the file is absent, damaged, holds objects that could run code, or no tensor.
    """
    try:
        contents = _reader(file)(file)
    except FileNotFoundError:
        raise CheckpointError(f"weights file {file.name} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(
            f"{file.name} is a folder; name the file in it, such as encoder.safetensors or checkpoints/step-....pt"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"weights file {file.name} cannot be read: {first_line(error)}") from None
    if not contents.tensors:
        raise CheckpointError(f"weights file {file.name} holds no tensors; what is wanted is a network's state dict")
    return contents


def _reader(file: Path) -> Callable[[Path], Contents]:
    if file.is_dir():
        raise IsADirectoryError
    return {".safetensors": _read_safetensors, ".npz": _read_npz}.get(file.suffix, _read_torch)


def _read_safetensors(file: Path) -> Contents:
    with safe_open(file, "pt") as opened:
        notes = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
    return Contents(file.name, tensors, backbone=notes.get("backbone"))


def _read_npz(file: Path) -> Contents:
    """Read NumPy arrays; TensorFlow's ":0" at the end of a variable's name goes."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {key.removesuffix(":0"): torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"weights file {file.name} holds more than arrays of numbers: {first_line(error)}\n"
            "Save the arrays alone, with numpy.savez."
        ) from None
    return Contents(file.name, tensors)


def _read_torch(file: Path) -> Contents:
    stand_ins: Any = [(maker, name) for name, maker in _HARMLESS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError):
        raise
    except Exception as error:  # pickle.UnpicklingError, and whatever else a damaged or made-up stream leads to
        raise CheckpointError(_why_not(file, str(error))) from None
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise CheckpointError(f"weights file {file.name} holds no state dict (a mapping of names to tensors)")
    tensors = dict(_flattened(content))
    tops = {key.partition("/")[0] for key in tensors}
    return Contents(file.name, tensors, tuple(str(key) for key in content if str(key) not in tops))


def _why_not(file: Path, message: str) -> str:
    """Say in few words why torch refused a file, from its many."""
    found = re.search(r"GLOBAL (\S+)", message)
    if not found:
        reason = "it is damaged, or torch.save did not write it"
        return f"weights file {file.name} cannot be read as tensors and plain values: {reason}"
    return (
        f"weights file {file.name} holds objects besides tensors, which could run code: {found[1]}\n"
        "Nothing was run. If you trust who made it, save its state dict alone, best as .safetensors, where that type\n"
        "is at home: safetensors.torch.save_file(model.state_dict(), FILE)."
    )


def _flattened(content: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested mappings and lists with its place."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in pairs:
        if isinstance(value, Tensor):
            yield f"{place}{key}", value.detach()
        elif isinstance(value, Mapping | list | tuple):
            yield from _flattened(value, f"{place}{key}/")
