"""The scripts are `medmoco prepare NAME` under the name of a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from medmoco.datasets.prepare import DATASETS
from tests.helpers.dataset_files import nih_files, put

SCRIPTS = Path(__file__).parents[2] / "dataset_processing"


@pytest.mark.parametrize("name", DATASETS)
def test_scripts__one_for_each_data_set(name: str) -> None:
    assert f'main("prepare", "{name}")' in (SCRIPTS / f"{name}.py").read_text()
    assert {file.stem for file in SCRIPTS.glob("*.py")} == {"__init__", "chest_films", *DATASETS}


def test_scripts__run_as_programs(tmp_path: Path) -> None:
    source = put(tmp_path / "source", nih_files(older=False))
    script = [sys.executable, str(SCRIPTS / "nih_chest_xray14.py")]
    command = [*script, "--source", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NIH ChestX-ray14: train ")
    assert done.stderr == ""
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert again.returncode == 2
    assert again.stderr.startswith("medmoco: ")
    assert "Traceback" not in again.stderr


def test_scripts__page_lists_each() -> None:
    page = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in DATASETS)
