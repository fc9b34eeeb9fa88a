"""prepare.py as a text; that it reads what training reads is tested beside the modules that it is made of."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from medmoco.exporting.standalone import standalone_source


def test_standalone_source__no_name_is_defined_twice() -> None:
    names: Counter[str] = Counter()
    for node in ast.parse(standalone_source()).body:
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
