from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from medmoco import config
from medmoco.errors import CheckpointError
from medmoco.training import checkpoint
from medmoco.training.checkpoint import keep_newest, load_checkpoint, portable_settings, save_checkpoint
from medmoco.utils.files import sha256_of
from tests.helpers.harm import HARM, flip_bit


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, {"model": {"w": torch.full((1000,), float(step))}})


def test_save_checkpoint__keeps_three_and_loads_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"step-{step:09d}.pt{suffix}" for step in (10, 15, 20) for suffix in ("", ".sha256")
    ]
    content = load_checkpoint(tmp_path, pytest.fail)
    assert content["step"] == 20
    assert content["model"]["w"][0] == 20


def test_keep_newest__drops_the_others_and_their_hashes(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    keep_newest(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-000000015.pt", "step-000000015.pt.sha256"]
    assert load_checkpoint(tmp_path, pytest.fail)["step"] == 15
    keep_newest(tmp_path / "absent")


@pytest.mark.parametrize("harm", HARM)
def test_load_checkpoint__damage_falls_back_loudly(tmp_path: Path, harm: Any) -> None:
    save(tmp_path, 5)
    harm(save(tmp_path, 10))
    said: list[str] = []
    assert load_checkpoint(tmp_path, said.append)["step"] == 5
    assert len(said) == 1
    assert "step-000000010.pt is damaged" in said[0]


def test_load_checkpoint__nothing_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_checkpoint(tmp_path, print)
    flip_bit(save(tmp_path, 5))
    with pytest.raises(CheckpointError, match="all 1 checkpoints of the run are damaged"):
        load_checkpoint(tmp_path, lambda _: None)


def test_load_checkpoint__runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("unpickled!",)

    save_checkpoint(tmp_path, 1, {"model": Harmful()})
    said: list[str] = []
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        load_checkpoint(tmp_path, said.append)
    assert "Weights only load failed" in said[0]
    assert capsys.readouterr().out == ""


def test_save_checkpoint__full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"No space left.*\nIt needs [\d,]+ bytes; the disk has [\d,]+ bytes free"
    ):
        save(tmp_path, 10)
    assert load_checkpoint(tmp_path, pytest.fail)["step"] == 5
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-000000005.pt", "step-000000005.pt.sha256"]


def test_save_checkpoint__an_error_of_torch_is_not_blamed_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore of it")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"written: CUDA.*failure\nEarlier checkpoints are intact\.$"):
        save(tmp_path, 1)


def test_save_checkpoint__same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"model": 1})
    assert load_checkpoint(tmp_path, pytest.fail)["model"] == 1
    assert len((tmp_path / "step-000000005.pt.sha256").read_text().splitlines()) == 1


def test_save_checkpoint__drops_later_ones_that_were_damaged_rather_than_itself(tmp_path: Path) -> None:
    """The three newest are damaged but one; the run went on from that one and stopped soon."""
    for step in (5, 10, 15):
        save(tmp_path, step)
    for file in (tmp_path / "step-000000010.pt", tmp_path / "step-000000015.pt"):
        flip_bit(file)
    for step in (6, 7, 8):
        save(tmp_path, step)
        assert load_checkpoint(tmp_path, pytest.fail)["step"] == step


def test_save_checkpoint__cleans_up_after_a_crash(tmp_path: Path) -> None:
    for name in ("step-000000004.tmp", "step-000000004.pt.sha256", "step-000000004.pt.sha256.tmp"):
        (tmp_path / name).write_text("left by a crash")
    save(tmp_path, 5)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-000000005.pt", "step-000000005.pt.sha256"]


def test_save_checkpoint__hash_is_what_sha256sum_checks(tmp_path: Path) -> None:
    file = save(tmp_path, 5)
    assert (tmp_path / f"{file.name}.sha256").read_text() == f"{sha256_of(file)}  {file.name}\n"


def make_settings(tmp_path: Path, *overrides: str) -> config.RunSettings:
    base = [f"out={tmp_path / 'secret-run'}", "data.manifest=secret/m", "data.root=/secret/{split}"]
    return config.load(None, [*base, "model.backbone=resnet18", "views.size=32", *overrides])


def test_portable_settings__name_no_folder(tmp_path: Path) -> None:
    second = "data.join={file: /secret/labels.csv, on: StudyID}"
    found = portable_settings(make_settings(tmp_path, "model.init=/secret/w.pth", second))
    assert "secret" not in str(found)
    assert found["train.epochs"] == 200


def test_load_checkpoint__a_whole_file_of_something_else_is_damaged(tmp_path: Path) -> None:
    file = save(tmp_path, 5)
    torch.save(torch.zeros(3), file)
    (tmp_path / f"{file.name}.sha256").write_text(sha256_of(file))
    with pytest.raises(CheckpointError, match="format None, this version reads 1"):
        load_checkpoint(tmp_path, lambda _: None)
