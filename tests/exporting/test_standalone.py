"""prepare.py as a text; that it reads what training reads is tested beside the modules that it is made of."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from medmoco.exporting.standalone import standalone_source
from medmoco.exporting.volume_contract import steps_read
from tests.helpers.volume_files import random_pixels, save_series
from tests.helpers.volume_subjects import CT, MR, head_like, prepared


@pytest.mark.parametrize("dimensions", [2, 3])
def test_standalone_source__no_name_is_defined_twice(dimensions: Literal[2, 3]) -> None:
    names: Counter[str] = Counter()
    for node in ast.parse(standalone_source(dimensions)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] += 1
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    assert len(names) > 100
    assert {name for name, times in names.items() if times > 1} == set()


def test_standalone_source__runs_without_medmoco_and_without_torch(tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text(standalone_source())
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(4096, dtype=np.uint8).reshape(64, 64))
    script = (
        "import sys; sys.modules.update(medmoco=None, torch=None)\n"
        "import prepare; print(prepare.gray('a.png')[0].sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": ""}
    )
    assert int(done.stdout) == 64 * 64 * 255 // 2
    libraries = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(standalone_source()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert libraries - sys.stdlib_module_names == {"numpy", "cv2", "PIL", "pydicom"}


# ---- volumes ----


def without_medmoco(folder: Path, script: str) -> None:
    """Run code next to prepare.py, in a process that can import neither medmoco nor torch."""
    (folder / "prepare.py").write_text(standalone_source(3))
    blocked = "import sys; sys.modules.update(medmoco=None, torch=None)\n"
    subprocess.run([sys.executable, "-c", blocked + script], cwd=folder, check=True, env={"PYTHONPATH": ""})


def check(paths: list[Path], folder: Path, **settings: Any) -> None:
    found = prepared(**settings)
    contract = {**steps_read(found), "normalise": {"mean": found.mean, "std": found.std}}
    given = {"contract": contract, "paths": [str(path) for path in paths]}
    (folder / "given.json").write_text(json.dumps(given))
    without_medmoco(
        folder,
        "import json, numpy, prepare\ngiven = json.load(open('given.json'))\n"
        "views = [prepare.volume(path, given['contract']) for path in given['paths']]\n"
        "numpy.savez('views.npz', *views)",
    )
    with np.load(folder / "views.npz") as views:
        for path, name in zip(paths, views.files, strict=True):
            np.testing.assert_array_equal(views[name], found.prepare(path))


@pytest.mark.parametrize("volumes", ["sliding", "resized"])
@pytest.mark.parametrize("settings", [MR, CT], ids=["mr", "ct"])
def test_standalone_source__volumes_are_bitwise_those_of_training(
    tmp_path: Path, settings: dict[str, Any], volumes: str
) -> None:
    nibabel, sitk = pytest.importorskip("nibabel"), pytest.importorskip("SimpleITK")
    turn = np.array([[0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # about the axis that becomes left and right
    oblique = np.eye(4)
    oblique[:3, :3] = turn * [0.9, 1.2, 2.2]
    nibabel.save(nibabel.Nifti1Image(head_like(), oblique), tmp_path / "a.nii.gz")
    np.save(tmp_path / "b.npy", head_like(seed=1))
    image = sitk.GetImageFromArray(head_like(seed=2))
    image.SetSpacing((1.3, 0.8, 2.0))
    paths = [tmp_path / name for name in ("a.nii.gz", "b.npy", "c.nrrd", "d.mha", "series")]
    for path in paths[2:4]:
        sitk.WriteImage(image, str(path))
    save_series(paths[-1], random_pixels(9, 40, 30))
    check(paths, tmp_path, size=24, volumes=volumes, **settings)


@pytest.mark.parametrize("settings", [MR, CT], ids=["mr", "ct"])
def test_standalone_source__real_volumes(tmp_path: Path, shared: Path, settings: dict[str, Any]) -> None:
    volumes = shared / "data/volumes"
    real = [volumes / name for name in ("ct_series", "example_ct_sm.nii.gz", "mr_series/HFS")]
    check([*real, min((volumes / "hippocampus/images").iterdir())], tmp_path, volumes="resized", **settings)


def test_standalone_source__volumes_refuse_with_a_value_error(tmp_path: Path) -> None:
    script = """
import prepare
contract = {"grayscale": {"window": "percentiles"}, "resample": {"spacing": None}, "canvas": {"bit_depth": 8}}
try:
    prepare.volume("missing.nii", contract)
except ValueError as error:
    assert type(error) is prepare.ImageError and "does not exist" in str(error) and "missing" not in str(error)
else:
    raise AssertionError
"""
    without_medmoco(tmp_path, script)


def test_standalone_source__volumes_need_few_libraries() -> None:
    tree = ast.parse(standalone_source(3))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    own = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert own == {"numpy", "cv2", "PIL", "pydicom", "scipy"}  # nibabel and SimpleITK where they are needed


def test_standalone_source__volumes_have_only_what_they_need() -> None:
    text = standalone_source(3)
    assert "def render(" not in text
    assert "def read_volume_canvas(" not in text
    assert "import medmoco" not in text
