from __future__ import annotations

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medmoco.errors import CheckpointError
from medmoco.models.interop.state_dicts import read_contents

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


class Spoken:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled!",)


@pytest.mark.parametrize("legacy", [False, True])
def test_read_contents__a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, legacy: bool) -> None:
    content = {"state_dict": {"a": WEIGHT}, "args": Harmful(tmp_path / "harm")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"could run code: posix\.mkdir\nNothing was run.* trust") as caught:
        read_contents(tmp_path / "w.pth")
    assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "harm").exists()  # what was kept from happening


@pytest.mark.parametrize("payload", [Spoken(), collections.namedtuple("Point", "x")])
def test_read_contents__an_object_is_refused_by_its_name(
    tmp_path: Path, payload: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Point", payload, raising=False)
    torch.save({"a": WEIGHT, "args": payload}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"could run code: (print|tests\S*Point)\n"):
        read_contents(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_read_contents__a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"could run code: torch\.nn\.modules\.linear\.Linear\n"):
        read_contents(tmp_path / "w.pth")


def module_with(monkeypatch: pytest.MonkeyPatch, name: str, **classes: type) -> None:
    """Let classes be importable under another library's name."""
    module = types.ModuleType(name)
    for key, value in classes.items():
        value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)
    for end in range(name.count(".")):
        parent = name.rsplit(".", end + 1)[0]
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("legacy", [False, True])
def test_read_contents__settings_of_others_are_passed_over(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_with(monkeypatch, "lightning_fabric.utilities.data", AttributeDict=type("AttributeDict", (dict,), {}))
    module_with(monkeypatch, "omegaconf.dictconfig", DictConfig=type("DictConfig", (), {}))
    module_with(monkeypatch, "omegaconf.base", ContainerMetadata=type("ContainerMetadata", (), {}))
    tree = sys.modules["omegaconf.dictconfig"].DictConfig()
    tree.metadata = sys.modules["omegaconf.base"].ContainerMetadata()
    tree.metadata.resolver_cache, tree.metadata.ref_type = collections.defaultdict(dict), Any
    attributes = sys.modules["lightning_fabric.utilities.data"].AttributeDict(lr=0.1, nested=tree)
    content = {
        "opt": argparse.Namespace(data=Path("secret"), lr=0.03, schedule=[1, 2]),
        "hyper_parameters": attributes,
        "best_acc1": np.float64(71.1),
        "rng": {"numpy": np.zeros(3, np.uint32)},
        "counts": collections.Counter("aab"),
        "when": collections.defaultdict(list, a=[1]),
        "epoch": 3,
        "model": {"a.weight": WEIGHT, "deeper": {"b": WEIGHT + 1}},
        "optimizer": {"state": {0: {"momentum_buffer": WEIGHT}}, "param_groups": [{"params": [0]}]},
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    before = set(torch.serialization.get_safe_globals())
    contents = read_contents(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    assert list(contents.tensors) == ["model/a.weight", "model/deeper/b", "optimizer/state/0/momentum_buffer"]
    torch.testing.assert_close(contents.tensors["model/deeper/b"], WEIGHT + 1)
    assert contents.others == ("opt", "hyper_parameters", "best_acc1", "rng", "counts", "when", "epoch")


def test_read_contents__safetensors_and_arrays(tmp_path: Path) -> None:
    save_file({"a": WEIGHT}, tmp_path / "w.safetensors", metadata={"format": "pt", "backbone": "resnet18"})
    contents = read_contents(tmp_path / "w.safetensors")
    torch.testing.assert_close(contents.tensors, {"a": WEIGHT})
    assert (contents.name, contents.backbone) == ("w.safetensors", "resnet18")
    np.savez(tmp_path / "w.npz", **{"conv0/W:0": WEIGHT.numpy(), "step": np.int64(3)})
    contents = read_contents(tmp_path / "w.npz")
    torch.testing.assert_close(contents.tensors["conv0/W"], WEIGHT)
    assert contents.backbone is None


def test_read_contents__arrays_of_objects_are_refused(tmp_path: Path) -> None:
    for array in (np.array([Harmful(tmp_path / "harm")]), np.array(["text"])):
        np.savez(tmp_path / "w.npz", a=array)
        with pytest.raises(CheckpointError, match="contains more than arrays of numbers"):
            read_contents(tmp_path / "w.npz")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", pickle.dumps([1, 2])])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ".pkl"])
def test_read_contents__damaged_or_absent(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_contents(file)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights file w\{suffix} (cannot be read|contains more)") as caught:
        read_contents(file)
    assert str(tmp_path) not in str(caught.value)


def test_read_contents__cut_off(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match=r"w\.pth cannot be read"):
        read_contents(file)


@pytest.mark.parametrize(("content", "reason"), [(WEIGHT, "no state dict"), ({"epoch": 1}, "contains no tensors")])
def test_read_contents__without_a_state_dict(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=reason):
        read_contents(tmp_path / "w.pth")


def test_read_contents__a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder; give a file in it, such as encoder\.safetensors"):
        read_contents(tmp_path)
