from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.utils.jobs.blocks import Block, Result, Unfinished, blocks_of, states_of, unfinished, work_through


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Ten files, and one that is missing."""
    (tmp_path / "data").mkdir()
    for number in range(10):
        (tmp_path / f"data/{number}").write_text(f"{number}")
    return [str(tmp_path / f"data/{number}") for number in range(11)]


def work(
    files: list[str], folder: Path, depends_on: Any = 1, stop_after: int = -1
) -> tuple[list[int], list[int], list[str]]:
    """Read files in blocks of four; return the numbers of the blocks that were made, and what was taken and said."""
    made: list[int] = []
    taken: list[int] = []
    said: list[str] = []
    with unfinished(folder, depends_on) as kept:

        def make(todo: Sequence[Block], stop_asked: Callable[[], bool]) -> Iterator[int]:
            for block in todo:
                states = states_of(block.files)
                texts = [Path(file).read_text() if Path(file).exists() else "-1" for file in block.files]
                kept.write(block.number, Result({"read": np.array(texts, int)}, {"count": len(texts)}), states)
                made.append(block.number)
                if len(made) == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield block.size
                if stop_asked():
                    return

        def take(block: Block, result: Result) -> None:
            assert result.facts == {"count": block.size}
            assert block.start == len(taken)
            taken.extend(result.arrays["read"].tolist())

        work_through(blocks_of(len(files), 4, files), kept, make, take, "reading", said.append)
    assert not folder.exists()
    return made, taken, said


READ = [*range(10), -1]


def test_work_through__keeps_what_is_finished_when_stopped(files: list[str], tmp_path: Path) -> None:
    assert work(files, tmp_path / "kept") == ([0, 1, 2], READ, [])
    with pytest.raises(Stopped, match=r"stopped reading after 8 of 11 images; finished blocks are kept") as caught:
        work(files, tmp_path / "kept", stop_after=2)
    assert caught.value.exit_code == 75
    made, read, said = work(files, tmp_path / "kept")
    assert (made, read) == ([2], READ)
    assert said == ["8 of 11 images are already finished; their files have not changed since"]


@pytest.mark.parametrize("change", ["content", "time", "missing"])
def test_work_through__a_changed_file_is_read_again(files: list[str], tmp_path: Path, change: str) -> None:
    with pytest.raises(Stopped):
        work(files, tmp_path / "kept", stop_after=2)
    file = Path(files[5])
    if change == "content":
        file.write_text("55")
    elif change == "time":
        os.utime(file, ns=(0, 0))
    else:
        file.unlink()
    expected = [*READ[:5], {"content": 55, "time": 5, "missing": -1}[change], *READ[6:]]
    assert work(files, tmp_path / "kept")[:2] == ([1, 2], expected)


def test_work_through__blocks_of_something_else_are_deleted(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        work(files, tmp_path / "kept", depends_on=["manifest"], stop_after=2)
    (tmp_path / "kept/old.npz.tmp").touch()
    with pytest.raises(Stopped):
        work(files, tmp_path / "kept", depends_on=["another"], stop_after=1)
    assert len(list((tmp_path / "kept").glob("*.npz*"))) == 1
    # A worker of a cluster that did not stop finishes a block of the other job.
    Unfinished(tmp_path / "kept", "0123").write(1, Result({"read": np.zeros(4)}), states_of(files[4:8]))
    assert work(files, tmp_path / "kept", depends_on=["another"])[:2] == ([1, 2], READ)


def test_work_through__a_damaged_block_is_made_again(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        work(files, tmp_path / "kept", stop_after=2)
    block = min((tmp_path / "kept").glob("*.npz"))
    block.write_bytes(block.read_bytes()[:-30])
    assert work(files, tmp_path / "kept")[:2] == ([0, 2], READ)


def test_work_through__a_block_that_is_lost_is_an_error(files: list[str], tmp_path: Path) -> None:
    def make(todo: Sequence[Block], _: Callable[[], bool]) -> Iterator[int]:
        return (block.size for block in todo)

    with unfinished(tmp_path / "kept", 1) as kept, pytest.raises(DataError, match=r"block 0 in .* is missing or"):
        work_through(blocks_of(3, 2), kept, make, lambda *_: None, "reading", print)


def test_unfinished__leaves_nothing_behind_if_nothing_is_finished(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), unfinished(tmp_path / "kept", 1):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_unfinished__is_for_one_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from medmoco.utils.jobs.blocks import unfinished\n"
        "with unfinished(Path(sys.argv[1]), 1): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "kept")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(SettingsError, match="another process is using"), unfinished(tmp_path / "kept", 1):
            pass
        assert process.stdin
        process.stdin.close()
    assert not (tmp_path / "kept").exists()


def test_unfinished__what_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"), unfinished(tmp_path / "file/kept", 1):
        pass
    with pytest.raises(DataError, match=r"block 3 cannot be written.*\nFinished blocks are kept"):
        Unfinished(tmp_path / "gone", "key").write(3, Result({}), states_of([]))


def test_states_of__a_folder_changes_with_its_files(tmp_path: Path) -> None:
    """As the folder of a DICOM series does, if a slice is replaced, added or removed."""
    folder = tmp_path / "series"
    (folder / "below").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text("12345")
        os.utime(folder / name, ns=(1, 10))
    os.utime(folder, ns=(1, 20))

    def state() -> list[int]:
        return states_of([str(folder)])[0].tolist()

    assert state() == [10, 20]
    os.utime(folder / "b", ns=(1, 30))
    assert state() == [10, 30]
    (folder / "b").write_text("1234")
    os.utime(folder / "b", ns=(1, 30))
    assert state() == [9, 30]
    (folder / "below/c").touch()  # which is not read
    os.utime(folder, ns=(1, 20))
    assert state() == [9, 30]
    (folder / "a").rename(folder / "c")
    assert state()[1] > 30
    assert states_of([str(tmp_path / "gone")]).tolist() == [[-1, -1]]


def test_work_through__names_what_it_works_on(files: list[str], tmp_path: Path) -> None:
    with unfinished(tmp_path / "kept", 1) as kept, pytest.raises(Stopped, match="after 0 of 11 volumes"):
        work_through(blocks_of(11, 4), kept, lambda *_: iter([]), print, "reading", print, noun="volumes")
