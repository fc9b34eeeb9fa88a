from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from medmoco import cli
from medmoco.cli.options import named, path, row_numbers, split_name
from medmoco.errors import SettingsError
from tests.helpers.commands import Call


def test_named__the_first_needs_no_name() -> None:
    assert named(["runs/a", "b=runs/b=1"]) == {"run": "runs/a", "b": "runs/b=1"}


@pytest.mark.parametrize(
    ("encoders", "words"), [(["a", "b"], "--encoder other=b"), (["x=a", "x=b"], "two encoders are named 'x'")]
)
def test_named__others_need_names_of_their_own(encoders: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        named(encoders)


def test_named__sources_are_read_as_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    assert named(["~/run", "b=~/w.pth", "c=random"]) == {
        "run": "/users/ada/run",
        "b": "/users/ada/w.pth",
        "c": "random",
    }
    with pytest.raises(SettingsError, match=r"--encoder: '\$NOWHERE': the environment variable NOWHERE is not set"):
        named(["a=$NOWHERE"])


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "--config", "configs/cxr.yaml", "--encoder=$NOWHERE", "--out", "x"],
        ["finetune", "--config=$NOWHERE", "--encoder=random", "--out", "x"],
        ["evaluate", "--config", "configs/cxr.yaml", "--encoder", "a", "--encoder", "b=$NOWHERE", "--out", "x"],
        ["import", "$NOWHERE", "--out", "x"],
        ["verify", "$NOWHERE"],
        ["report", "a", "$NOWHERE"],
        ["split", "--csv=$NOWHERE", "--out", "x"],
        ["check", "--config", "configs/cxr.yaml", "--against=$NOWHERE"],
        ["pack", "--config", "configs/cxr.yaml", "--out=$NOWHERE"],
    ],
)
def test_path__a_variable_that_is_not_set(call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert "the environment variable NOWHERE is not set" in call(*words, code=2).stderr


def test_path__reads_all_options_that_are_paths() -> None:
    for group in cli.app.registered_groups:
        for command in group.typer_instance.registered_commands:  # type: ignore[union-attr]
            hints: dict[str, Any] = typer.main.get_params_from_function(command.callback)  # type: ignore[arg-type]
            for parameter in hints.values():
                kinds = {parameter.annotation, *get_args(parameter.annotation)}
                assert Path not in kinds or parameter.default.parser is path, (command.name, parameter.name)


def test_row_numbers__are_whole() -> None:
    assert row_numbers("3, 17") == [3, 17]
    with pytest.raises(SettingsError, match="'3;7' is not a list"):
        row_numbers("3;7")


def test_split_name__is_one_of_three() -> None:
    assert split_name("val") == "val"
    with pytest.raises(SettingsError, match="'valid' is not a split"):
        split_name("valid")
