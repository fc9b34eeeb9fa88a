from __future__ import annotations

import re
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


def test_encoders__have_a_size_of_their_own_where_it_is_used(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, may in (("evaluate", True), ("curve", True), ("placement", False)):
        shown = call(command, "--help").stdout
        assert "imagenet=FILE" in shown
        assert ("@SIZE" in shown) == ("imagenet=FILE@224" in shown) == may


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


# ---- the settings file ----


def test_config__medmoco_yaml_in_the_working_folder_is_the_default(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("medmoco.yaml").write_text("out: runs/mine\ndata: {manifest: m, root: r}\n")
    said = call("config", "train.epochs=7").stdout
    assert re.search(r"out: runs/mine +# medmoco\.yaml", said)
    assert "epochs: 7" in said
    Path("other.yaml").write_text("out: runs/other\ndata: {manifest: m, root: r}\n")
    assert "runs/other" in call("config", "--config", "other.yaml").stdout


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain"],
        ["config"],
        ["evaluate", "--encoder", "random", "--out", "x"],
        ["export", "--encoder", "w.safetensors", "--out", "x"],
        ["slurm", "--out", "x"],
    ],
)
def test_config__without_a_file_both_remedies_are_named(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call(*words, code=2).stderr
    assert "there is no medmoco.yaml in the working folder" in said
    assert "--config FILE" in said
    assert "medmoco init FOLDER" in said


@pytest.mark.parametrize("command", ["pretrain", "config"])
def test_config__a_file_without_its_option(call: Call, command: str) -> None:
    assert "--config configs/cxr.yaml" in call(command, "configs/cxr.yaml", code=2).stderr


def test_slurm__names_the_file_by_its_whole_path(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    call("phantom", "--out", "data", "--patients", 12, "--image-size", 64)
    Path("medmoco.yaml").write_text(
        "out: run\ndata: {manifest: data, root: 'data/{split}'}\n"
        "method: {queue_size: 4}\ntrain: {global_batch_size: 4}\n"
    )
    call("slurm", "--out", "job.sbatch")
    assert f"pretrain --config {tmp_path / 'medmoco.yaml'} --resume" in Path("job.sbatch").read_text()
