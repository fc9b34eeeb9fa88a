"""Read weights files as named tensors, without executing code.

torch.load is always called with `weights_only=True`, which builds only tensors and plain values. Foreign checkpoints
may also contain the arguments of their programs. If such a type is known to be harmless, a stand-in that stores nothing
replaces it: the type itself is neither imported nor instantiated.
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
    """The contents of a weights file."""

    name: str  # name of the file, without its folder
    tensors: dict[str, Tensor]  # key -> tensor on the CPU; keys of nested mappings are joined by "/"
    others: tuple[str, ...] = ()  # names at the top level without tensors, such as "epoch"
    backbone: str | None = None  # the network stated in the file, in files of medmoco only


class _StandIn:
    """Replaces an object that is not needed."""

    def __new__(cls, *_: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


# Types in the file -> replacements, for settings, paths and NumPy numbers, and for subclasses of dict.
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
    """Return copies to be saved: on the CPU, contiguous, without gradients or shared memory."""
    layout = torch.contiguous_format
    return {name: value.detach().cpu().clone(memory_format=layout) for name, value in state.items()}


def read_contents(file: Path) -> Contents:
    """Return the contents of a .safetensors, .npz or torch.save file (.pt, .pth, .pth.tar, .ckpt, .bin).

    Raises:
        CheckpointError: the file is missing, damaged, contains objects that could run code, or contains no tensor.
    """
    try:
        contents = _reader(file)(file)
    except FileNotFoundError:
        raise CheckpointError(f"weights file {file.name} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(
            f"{file.name} is a folder; give a file in it, such as encoder.safetensors or checkpoints/step-....pt"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"weights file {file.name} cannot be read: {first_line(error)}") from None
    if not contents.tensors:
        raise CheckpointError(f"weights file {file.name} contains no tensors; a network's state dict is needed")
    return contents


def _reader(file: Path) -> Callable[[Path], Contents]:
    if file.is_dir():
        raise IsADirectoryError
    return {".safetensors": _read_safetensors, ".npz": _read_npz}.get(file.suffix, _read_torch)


def _read_safetensors(file: Path) -> Contents:
    with safe_open(file, "pt") as opened:
        notes = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is not a mapping
    return Contents(file.name, tensors, backbone=notes.get("backbone"))


def _read_npz(file: Path) -> Contents:
    """Return the contents of an .npz file, without TensorFlow's ":0" at the end of variable names."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {key.removesuffix(":0"): torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"weights file {file.name} contains more than arrays of numbers: {first_line(error)}\n"
            "Save only the arrays, with numpy.savez."
        ) from None
    return Contents(file.name, tensors)


def _read_torch(file: Path) -> Contents:
    stand_ins: Any = [(maker, name) for name, maker in _HARMLESS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError):
        raise
    except Exception as error:  # pickle.UnpicklingError, and anything else that a damaged or hostile file may cause
        raise CheckpointError(_refusal(file, str(error))) from None
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise CheckpointError(f"weights file {file.name} contains no state dict (a mapping of names to tensors)")
    tensors = dict(_flattened(content))
    tops = {key.partition("/")[0] for key in tensors}
    return Contents(file.name, tensors, tuple(str(key) for key in content if str(key) not in tops))


def _refusal(file: Path, message: str) -> str:
    """Return a short error message for a file that torch refused with a long one."""
    unsafe = re.search(r"GLOBAL (\S+)", message)
    if not unsafe:
        reason = "it is damaged, or was not written by torch.save"
        return f"weights file {file.name} cannot be read as tensors and plain values: {reason}"
    return (
        f"weights file {file.name} contains objects other than tensors, which could run code: {unsafe[1]}\n"
        "Nothing was run. If you trust its source, load it where that type is installed and save only the state dict,\n"
        "preferably as .safetensors: safetensors.torch.save_file(model.state_dict(), FILE)."
    )


def _flattened(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested mappings and lists with its key."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in pairs:
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping | list | tuple):
            yield from _flattened(value, f"{prefix}{key}/")
