from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from medmoco import errors


def test_tree__docstring_draws_every_class_under_its_base_with_its_exit_code() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str | None, int]] = {}
    ancestors: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([ │├└─]+)([A-Z]\w+)(?: +(\d+))?  +\w", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        ancestors = [entry for entry in ancestors if entry[0] < depth]
        base = ancestors[-1][1] if ancestors else None
        assert match[3] or base, f"{name} has no exit code"
        drawn[name] = (base, int(match[3]) if match[3] else drawn[base or ""][1])
        ancestors.append((depth, name))
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert drawn == {
        name: (kind.__base__.__name__ if kind is not errors.MedmocoError else None, kind.exit_code)
        for name, kind in classes.items()
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Kernel size: (3 x 3). Kernel size can't be greater\nmore"),
         "RuntimeError: Kernel size: (3 x 3). Kernel size can't be greater"),
        (RuntimeError("cannot read '/data/Doe^Jane/1.dcm' or img/7.png"), "RuntimeError: cannot read ... or ..."),
        (RuntimeError("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: bad shape\n"),
         "RuntimeError: ValueError: bad shape"),
        (FileNotFoundError(2, "No such file or directory", "Doe.png"), "FileNotFoundError: No such file or directory"),
        (KeyError("P0017"), "KeyError"),
        (ValueError("could not convert P0017 to float"), "ValueError"),
        (MemoryError(), "MemoryError"),
    ],
)  # fmt: skip
def test_without_names__says_what_cannot_name_a_patient(error: Exception, expected: str) -> None:
    assert errors.without_names(error) == expected


def test_traceback_of__shows_where_but_not_what() -> None:
    def look_up(cell: str) -> int:
        return {}[cell]

    with pytest.raises(KeyError) as caught:
        look_up("P0017")
    text = errors.traceback_of(caught.value)
    assert "in look_up" in text
    assert text.endswith("\nKeyError")
    assert "P0017" not in text.split("in look_up")[1]


def test_traceback_of__names_files_from_their_package_on() -> None:
    with pytest.raises(ValueError, match="reshape") as caught:
        np.reshape([1, 2], 3)
    with pytest.raises(json.JSONDecodeError) as other:
        json.loads("{")
    text = errors.traceback_of(caught.value) + errors.traceback_of(other.value)
    assert 'File "site-packages/numpy/' in text.replace("\\", "/")
    assert "/json/decoder.py" in text.replace("\\", "/")
    assert 'File "test_errors.py"' in text
    for folder in (sys.prefix, sys.base_prefix, str(Path(__file__).parent)):
        assert folder not in text


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        (str(Path(errors.__file__).parent / "data" / "packs.py"), str(Path("medmoco", "data", "packs.py"))),
        ("/data/alice/medmoco/patient_smith/run.py", "run.py"),
        (r"C:\data\alice\medmoco\run.py", "run.py"),
    ],
)
def test_traceback_of__a_folder_of_the_users_is_left_out_whatever_its_name(file: str, shown: str) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", file, "exec"))
    assert f'File "{shown}", line 1' in errors.traceback_of(caught.value)
