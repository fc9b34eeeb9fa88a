from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow, verify_net_in_out

from medmoco.exporting.export import export
from medmoco.exporting.formats.monai_bundle import FOLDER, write
from medmoco.exporting.subject import subject_of
from medmoco.exporting.verify import verify
from tests.exporting.test_segmentation_file import write_images
from tests.helpers.segmenters import make_segmenter

BUNDLES = [
    (2, "test_resnet"),
    pytest.param(3, "nnunet/resenc_4stages_quarter", marks=pytest.mark.slow),
    pytest.param(3, "monai/resnet10_quarter", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dimensions", "name"), BUNDLES)
def test_bundle__monai_segments_a_folder_as_medmoco_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimensions: int, name: str
) -> None:
    segmenter = make_segmenter(tmp_path / "segmenter", dimensions, f"model.backbone={name}", "views.size=32")
    write(subject_of(segmenter), tmp_path)
    root, out = tmp_path / FOLDER, tmp_path / "out"
    images = write_images(tmp_path / "images", dimensions)
    for module in ("scripts", "scripts.prepare", "scripts.network"):
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]  # and again when the test ends
    monkeypatch.setattr(sys, "path", [*sys.path])
    workflow = ConfigWorkflow(
        config_file=str(root / "configs/inference.json"), meta_file=str(root / "configs/metadata.json"),
        workflow_type="infer", logging_file=False, bundle_root=str(root), dataset_dir=str(tmp_path / "images"),
        output_dir=str(out),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []  # what MONAI's own programs look for is there
    workflow.run()
    suffix = ".png" if dimensions == 2 else ".nii.gz"
    letters = "abcde" if dimensions == 2 else "abc"
    assert sorted(file.name for file in out.iterdir()) == [f"{letter}{suffix}" for letter in letters]
    table = np.array([0, *segmenter.classes.values])
    for image in images:
        file = str(out / (image.name.partition(".")[0] + suffix))
        found = cv2.imread(file, cv2.IMREAD_UNCHANGED) if dimensions == 2 else nibabel.load(file).dataobj
        expected = table[segmenter.segment(image).numbers]
        if image.name == "b.nii" or image.name == "a.nii.gz":  # stored from left to right
            expected = expected[::-1]
        np.testing.assert_array_equal(np.asarray(found), expected)
    monkeypatch.chdir(root)
    verify_net_in_out(
        "network_def", meta_file=str(root / "configs/metadata.json"), config_file=str(root / "configs/inference.json")
    )


@pytest.mark.slow
def test_export__onnx_of_a_run(tmp_path: Path) -> None:
    make_segmenter(tmp_path / "run" / "segmenter", 2)
    lines: list[str] = []
    out = tmp_path / "export"
    files = export(tmp_path / "run", out, warn=lines.append)
    assert {file.name for file in files} >= {"segmenter.onnx", "prepare.py", "preprocessing.json", "MODEL_CARD.md"}
    assert lines == [
        "the segmentation network is not in a run folder, so the export is not searched for its Paths and IDs"
    ]
    assert verify(out) == {"onnx": "verified"}
    contract = json.loads((out / "preprocessing.json").read_text())
    assert contract["steps"] == ["grayscale", "canvas", "windows", "normalise", "mirror"]
    assert contract["segmenter"]["classes"] == {"large": 10, "small": 20}
    assert contract["outputs"][0]["shape"] == ["batch", 3, 32, 32]
    card = (out / "MODEL_CARD.md").read_text()
    assert "| large | 10 |" in card
    assert "mean Dice of 0.500 on validation" in card


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_export__all_formats(tmp_path: Path, dimensions: int) -> None:
    segmenter, lines = make_segmenter(tmp_path / "segmenter", dimensions), list[str]()
    export(segmenter, tmp_path / "export", ["all"], warn=lines.append)
    verified = dict.fromkeys(["monai-bundle", "onnx", "program"], "verified")
    assert verify(tmp_path / "export", trust=True) == verified
    refused = {"safetensors", "timm", "torchvision", "detectron2", "huggingface", "nnunet"}
    assert {line.removeprefix("skipped ").partition(":")[0] for line in lines if "skipped" in line} == refused
