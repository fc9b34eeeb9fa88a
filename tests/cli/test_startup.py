"""Each command loads the heavy libraries that its work needs and no others, since importing them takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import medmoco
from tests.helpers.commands import TINY

ROOT = Path(__file__).parents[2]
HEAVY = {
    "cv2", "matplotlib", "monai", "onnx", "onnxruntime", "pandas", "pydicom", "sklearn", "tensorboard", "timm", "torch",
    "torchvision",
}  # fmt: skip
PROGRAM = f"""
import sys
from medmoco.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *sorted({HEAVY} & set(sys.modules)))
"""


def loaded(folder: Path, command: str) -> set[str]:
    """Run a command in a process of its own; return the heavy libraries that it has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("startup")
    medmoco.phantom(folder / "data", patients=24, image_size=64)
    (folder / "medmoco.yaml").write_text(TINY)
    return folder


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("config", ""),
        ("phantom --out more --patients 10 --image-size 64", "cv2 pandas pydicom"),
        ("split --csv data/train.csv --out split", "pandas"),
        ("check", "cv2 pandas pydicom sklearn"),
        ("pack --out pack", "cv2 pandas pydicom"),
        ("slurm --out job.sbatch", "pandas"),
        ("preview --out views.png", "cv2 pandas pydicom torch"),
    ],
)
def test_command__loads_what_it_needs(folder: Path, command: str, expected: str) -> None:
    assert loaded(folder, command) == set(expected.split())


NETWORKS = "cv2 pandas pydicom timm torch torchvision"


@pytest.mark.slow
def test_commands__that_use_networks_load_what_they_need(folder: Path) -> None:
    found = {command.split()[0]: loaded(folder, command) for command in (
        "pretrain", "evaluate --encoder run --out run/evaluation", "report run", "export --run run --out export",
        "verify export", "predict --classifier run/evaluation/classifier --out p.csv",
        "embed --encoder run --out features.csv",
    )}  # fmt: skip
    networks = set(NETWORKS.split())
    assert found == {
        "pretrain": networks | {"tensorboard"},
        "evaluate": networks | {"sklearn"},
        "report": {"cv2", "matplotlib", "pandas", "pydicom", "sklearn"},
        "export": networks | {"onnx"},
        "verify": {"cv2"},
        "predict": networks,
        "embed": networks,
    }
