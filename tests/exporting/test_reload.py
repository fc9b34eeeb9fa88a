from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from medmoco.exporting import reload

SCRIPT = Path(reload.__file__)


def test_script__imports_nothing_of_ours_and_each_library_only_when_needed() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imports |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(name.partition(".")[0] == "medmoco" for name in imports)
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.partition(".")[0] for name in top} - sys.stdlib_module_names == {"numpy"}


def test_main__runs_without_medmoco_and_keeps_chatter_out_of_the_features(tmp_path: Path) -> None:
    name, arguments = "test_vit", {"in_chans": 1, "num_classes": 0, "img_size": 32}
    torch.manual_seed(0)
    net = timm.create_model(name, **arguments).eval()
    save_file(net.state_dict(), tmp_path / "encoder.safetensors")
    contract = {"model": {"library": "timm", "name": name, "arguments": arguments}}
    (tmp_path / "preprocessing.json").write_text(json.dumps(contract))
    images = torch.randn(3, 1, 32, 32)
    stream = io.BytesIO()
    np.save(stream, images.numpy())
    # The import of medmoco fails in this process, and timm's import prints.
    program = (
        "import runpy, sys; sys.modules['medmoco'] = None; sys.argv = sys.argv[1:]\n"
        "class Loud:\n    def find_spec(self, name, *_):\n        print('chatter', flush=True)\n"
        "sys.meta_path.insert(0, Loud()); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = [str(tmp_path / file) for file in ("encoder.safetensors", "preprocessing.json")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(SCRIPT), *files], input=stream.getvalue(), capture_output=True,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"chatter" in done.stderr
    start = done.stdout.index(b"\x93NUMPY")  # what was printed before main() took over
    features = np.load(io.BytesIO(done.stdout[start:]))
    with torch.inference_mode():
        np.testing.assert_allclose(features, net(images).numpy(), atol=1e-5)


def test_through_pytorch__is_strict(tmp_path: Path) -> None:
    arguments = {"in_chans": 1, "num_classes": 0}
    state = timm.create_model("test_vit", **arguments).state_dict()
    state.pop("norm.weight")
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        reload.through_pytorch(
            tmp_path / "encoder.safetensors",
            {"model": {"library": "timm", "name": "test_vit", "arguments": arguments}},
        )
