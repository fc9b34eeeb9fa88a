from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medmoco.exporting.formats import detectron2_file
from tests.helpers.made_files import assert_comes_back_in
from tests.helpers.volume_subjects import volume_subject


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("head", [False, True])
def test_write__names_compute_the_features(tmp_path: Path, make_subject, read_back, name: str, head: bool) -> None:
    found, expected = read_back("detectron2", make_subject(name, head=head), tmp_path)
    assert set(found) == {"features"}
    np.testing.assert_allclose(found["features"], expected["features"], atol=1e-6 * np.abs(expected["features"]).max())


def test_write__comes_back_in(tmp_path: Path, make_subject) -> None:
    subject = make_subject("resnet18")
    (file,) = detectron2_file.write(subject, tmp_path)
    assert_comes_back_in(file, subject, make_subject("resnet18").backbone)


def test_write__holds_what_the_checkpointer_reads(tmp_path: Path, make_subject) -> None:
    (file,) = detectron2_file.write(make_subject("resnet18"), tmp_path)
    content = torch.load(file, weights_only=True)
    assert {key: content[key] for key in content if key != "model"} == {
        "__author__": "medmoco", "matching_heuristics": True,
    }  # fmt: skip
    names = content["model"].keys()
    # Source: detectron2's model zoo; the names of its build_resnet_backbone.
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.conv1.norm.weight"} < names
    assert {"res3.0.shortcut.weight", "res3.0.shortcut.norm.bias", "res5.1.conv2.weight"} < names
    assert all(name.startswith(("stem.conv1.", "res2.", "res3.", "res4.", "res5.")) for name in names)


def test_describe__tells_the_detector_how_images_come(make_subject) -> None:
    settings = detectron2_file.describe(make_subject("resnet50"))["settings"]
    assert settings["MODEL.PIXEL_MEAN"] == [127.5]
    assert settings["MODEL.PIXEL_STD"] == [63.75]
    assert settings["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert settings["MODEL.RESNETS.DEPTH"] == 50


def test_refusal__names_the_networks_there_are(make_subject) -> None:
    reason = detectron2_file.refusal(make_subject("test_vit"))
    assert reason
    assert "resnet50, resnet101" in reason


def test_refusal__of_volumes() -> None:
    assert detectron2_file.refusal(volume_subject()) == "detectron2 has no networks for volumes"
