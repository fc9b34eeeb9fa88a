from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from medmoco.config import Settings
from medmoco.errors import CheckpointError
from medmoco.evaluation.supervised.model_folder import ModelFolder

FOLDER = ModelFolder("toy", "toy.safetensors", "toy.json", "`medmoco play`")
STATE = {"weight": torch.arange(3.0)}


class Facts(Settings):
    name: str
    sha256: str


def write(folder: Path, **facts: Any) -> Path:
    FOLDER.write(folder, STATE, Facts, {"name": "a", **facts})
    return folder


def test_write__is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "a" / "b")
    facts = FOLDER.read_facts(folder, Facts)
    assert facts.name == "a"
    assert torch.equal(load(FOLDER.read_weights(folder, facts.sha256))["weight"], STATE["weight"])
    assert {file.name for file in folder.iterdir()} == {"toy.safetensors", "toy.json"}
    write(folder, name="b")
    assert FOLDER.read_facts(folder, Facts).name == "b"


def test_write__refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the toy's weights are not finite: .* nothing was written"):
        FOLDER.write(tmp_path / "a", {"weight": torch.tensor([1.0, torch.inf])}, Facts, {"name": "a"})
    assert not (tmp_path / "a").exists()


def test_write__a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(CheckpointError, match=r"the toy folder .* cannot be written"):
        write(tmp_path / "a")


def test_read_weights__refuses_those_of_another_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    facts = FOLDER.read_facts(folder, Facts)
    FOLDER.write(tmp_path / "b", {"weight": torch.ones(3)}, Facts, {"name": "a"})
    shutil.copy(tmp_path / "b/toy.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"does not belong to toy\.json: its SHA-256 differs"):
        FOLDER.read_weights(folder, facts.sha256)
    (folder / "toy.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        FOLDER.read_weights(folder, facts.sha256)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({"name": 1, "sha256": "x"}), r"\(name: "),
        (json.dumps({"name": "a", "sha256": "x", "more": 1}), r"\(more: "),
        ("[]", r"\(toy\.json: "),
        ("{", r"\(Expecting"),
        ("[" * 100_000, r"\("),
    ],
)
def test_read_facts__refuses_damage(tmp_path: Path, text: str, reason: str) -> None:
    folder = write(tmp_path / "a")
    (folder / "toy.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"toy\.json is damaged or of another version of medmoco {reason}"):
        FOLDER.read_facts(folder, Facts)


def test_read_facts__says_what_writes_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is not a toy folder: it has no toy\.json;\ncreate one with `medmoco play`"
    ):
        FOLDER.read_facts(tmp_path, Facts)
    (tmp_path / "toy.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        FOLDER.read_facts(tmp_path, Facts)


def test_mismatch__names_the_network(tmp_path: Path) -> None:
    assert "toy.safetensors does not match a resnet18 with 3 labels." in str(
        FOLDER.mismatch(tmp_path, "resnet18 with 3 labels")
    )
