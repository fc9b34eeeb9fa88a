"""Disks that are full, and folders that cannot be written."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.runs import assert_same_result, checkpoints, pretrain, status, steps


def privileged(*command: object) -> None:
    """Run a command that needs rights; skip the test where they are lacking."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.strip()}")


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory of `size` bytes."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount command here")
    place.mkdir()
    privileged("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Take away the right to make files in a folder, for root too."""
    if os.geteuid():
        folder.chmod(0o500)
    else:
        privileged("chattr", "+i", folder)
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)


def test_full_disk__at_a_save_leaves_the_checkpoint_before_and_says_how_many_bytes_are_needed(
    settings: Path, straight: Path, tmp_path: Path
) -> None:
    size = checkpoints(straight)[0].stat().st_size
    with small_disk(tmp_path / "disk", size * 3 // 2) as disk:
        run = pretrain(settings, disk / "run", said=tmp_path / "said")
        assert run.wait() == 4
        refusal = run.said[run.said.index("medmoco: ") :]
        assert "the checkpoint of step 8 cannot be written: No space left on device" in refusal
        needed, free = (int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes", refusal))
        assert needed == size
        assert size // 4 < free < size
        assert len(refusal.splitlines()) <= 5
        assert [file.name for file in sorted((disk / "run/checkpoints").iterdir())] == [
            "step-000000004.pt", "step-000000004.pt.sha256",
        ]  # fmt: skip
        assert status(disk / "run")["exit_code"] == 4

        privileged("mount", "-o", f"remount,size={size * 6}", disk)
        again = pretrain(settings, disk / "run", "--resume", said=tmp_path / "said")
        assert again.wait() == 0, again.said
        assert_same_result(disk / "run", straight)


def test_full_disk__between_saves_is_no_traceback(settings: Path, straight: Path, tmp_path: Path) -> None:
    """Another program fills the disk; the run cannot even note a loss."""
    endless = ("train.checkpoint_every=1000", "train.epochs=1000", "data.workers=2")
    with small_disk(tmp_path / "disk", 6 * checkpoints(straight)[0].stat().st_size) as disk:
        run = pretrain(settings, disk / "run", *endless, said=tmp_path / "said")
        run.wait_for(lambda: steps(disk / "run"))
        fill(disk / "filler")
        assert run.wait() == 4
        assert "the run folder cannot be written: No space left on device" in run.said
        assert "Traceback" not in run.said


def fill(file: Path) -> None:
    """Write until the disk takes no more."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        for size in itertools.chain([2**16] * 2**16, itertools.repeat(1)):
            stream.write(bytes(size))


def test_unwritable__checkpoints_folder_leaves_the_earlier_ones(settings: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out)
    run.wait_for(lambda: checkpoints(out))
    with unwritable(out / "checkpoints"):
        assert run.wait() == 4
    kept = checkpoints(out)
    assert kept
    assert re.search(
        r"the checkpoint of step \d+ cannot be written: (Operation not permitted|Permission denied)", run.said
    )
    assert "Earlier checkpoints are intact. Make the run folder writable, then continue with --resume." in run.said
    assert "Traceback" not in run.said
    again = pretrain(settings, out, "--resume")
    assert again.wait() == 0, again.said
    assert_same_result(out, straight)


def test_unwritable__disk_is_said_before_anything_is_done(settings: Path, stopped: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**28) as disk:
        shutil.copytree(stopped, disk / "run")
        privileged("mount", "-o", "remount,ro", disk)
        for out, option in (("run", "--resume"), ("run", "--overwrite"), ("new", "--resume")):
            run = pretrain(settings, disk / out, option, said=tmp_path / "said")
            assert run.wait() == 4
            assert "cannot be written: Read-only file system" in run.said
            assert len(run.said.splitlines()) <= 5
        assert len(checkpoints(disk / "run")) == 3
