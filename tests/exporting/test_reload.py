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

from medmoco.evaluation.features.probes import one_versus_rest
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
    contract = {
        "model": {"library": "timm", "name": name, "arguments": arguments},
        "classifier": None,
        "formats": {"safetensors": {"precisions": ["float32", "bfloat16"]}},
    }
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
        [sys.executable, "-P", "-c", program, str(SCRIPT), "safetensors", *files], input=stream.getvalue(),
        capture_output=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"chatter" in done.stderr
    start = done.stdout.index(b"PK")  # what was printed before main() took over
    found = np.load(io.BytesIO(done.stdout[start:]))
    libraries = json.loads(str(found["libraries"]))
    assert {"timm", "torch", "safetensors"} <= set(libraries)
    assert "medmoco" not in libraries
    with torch.inference_mode():
        expected = net(images).numpy()
    np.testing.assert_allclose(found["float32/features"], expected, atol=1e-5)
    assert 0 < np.abs(found["bfloat16/features"] - expected[: reload.HALF_IMAGES]).max() < 0.1 * np.abs(expected).max()


def test_load_safetensors__is_strict(tmp_path: Path) -> None:
    arguments = {"in_chans": 1, "num_classes": 0}
    state = timm.create_model("test_vit", **arguments).state_dict()
    state.pop("norm.weight")
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        reload.load_safetensors(
            tmp_path / "encoder.safetensors",
            {"model": {"library": "timm", "name": "test_vit", "arguments": arguments}},
        )


def test_main__an_absent_library_has_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "preprocessing.json").write_text("{}")
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 1, 4, 4), np.float32))
    program = (
        "import runpy, sys; sys.modules['onnxruntime'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(SCRIPT), "onnx", "none", str(tmp_path / "preprocessing.json")],
        input=stream.getvalue(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == reload.ABSENT
    assert done.stderr.decode().strip().splitlines()[-1] == "onnxruntime"


@pytest.mark.parametrize("exclusive", [False, True])
def test_finish__is_what_a_classifier_does(exclusive: bool) -> None:
    outputs = 4 * np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    lines = [{"slope": 1.5, "intercept": 0.5}, {"slope": 1.0, "intercept": 0.0}, {"slope": 0.0, "intercept": -1.0}]
    contract = {"labels": ["A", "B", "C"], "exclusive": exclusive, "calibration": dict(zip("ABC", lines, strict=True))}
    found = reload.finish(outputs, contract)
    logits = one_versus_rest(torch.from_numpy(outputs)).numpy() if exclusive else outputs
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    for place, line in enumerate(lines):
        expected = 1 / (1 + np.exp(-(line["slope"] * logits[:, place] + line["intercept"])))
        np.testing.assert_allclose(found["probabilities"][:, place], expected, atol=1e-6)


def test_finish__an_encoder_has_features() -> None:
    outputs = np.ones((2, 3), np.float32)
    assert reload.finish(outputs, None) == {"features": outputs}


def test_of_network__mirrors_a_classifier_alone() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    images = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    line = {"A": {"slope": 1, "intercept": 0}}
    classifier = {"labels": ["A"], "exclusive": False, "calibration": line}
    weight = net[1].weight.detach().numpy().reshape(1, 2, 2)
    plain = (images[:, 0] * weight).sum((1, 2))
    mirrored = (images[:, 0, :, ::-1] * weight).sum((1, 2))
    contract = {"classifier": classifier, "mirror": {"average": True}}
    found = reload.of_network(net, contract)(images, "float32")
    np.testing.assert_allclose(found["logits"][:, 0], (plain + mirrored) / 2, rtol=1e-5)
    features = reload.of_network(net, {**contract, "classifier": None})(images, "float32")["features"]
    np.testing.assert_allclose(features[:, 0], plain, rtol=1e-5)


def test_of_network__each_precision_starts_from_float32() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images = np.random.default_rng(0).standard_normal((2, 1, 2, 2)).astype(np.float32)
    run = reload.of_network(net, {"classifier": None})
    first = run(images, "float32")["features"]
    half = run(images, "float16")["features"]
    assert 0 < np.abs(half - first).max() < 0.01
    np.testing.assert_array_equal(run(images, "float32")["features"], first)
