from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from medmoco.exporting.formats import torchvision_file
from tests.helpers.made_files import assert_comes_back_in
from tests.helpers.volume_subjects import volume_subject


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", False),
        ("resnet18", True),
        ("vit_tiny_patch16_224", True),
        ("monai/densenet121", True),
        pytest.param("densenet121", False, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", False, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", True, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", False, marks=pytest.mark.slow),
    ],
)
def test_write__gives_the_same_outputs(tmp_path: Path, make_subject, read_back, name: str, head: bool) -> None:
    found, expected = read_back("torchvision", make_subject(name, head=head, mirror=head), tmp_path)
    assert set(found) == ({"logits", "probabilities"} if head else {"features"})
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=1e-6 * max(1, np.abs(expected[key]).max()))


def test_write__a_stranger_needs_torchvision_alone(
    tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject("resnet18")
    (file,) = torchvision_file.write(subject, tmp_path)
    net = torchvision.models.resnet18()
    missing = net.state_dict().keys() ^ torch.load(file, weights_only=True).keys()
    assert missing == {"fc.weight", "fc.bias"}
    monkeypatch.chdir(tmp_path)
    scope = {"images": torch.randn(2, 1, 32, 32)}
    exec("import torch, torchvision\n" + "\n".join(torchvision_file.describe(subject)["load"]), scope)
    torch.testing.assert_close(scope["outputs"], subject.backbone(scope["images"]))


def test_write__comes_back_in(tmp_path: Path, make_subject) -> None:
    subject = make_subject("resnet18")
    (file,) = torchvision_file.write(subject, tmp_path)
    assert_comes_back_in(file, subject, make_subject("resnet18").backbone)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "vit_tiny_r_s16_p8_224", "vit_wee_patch16_reg1_gap_256"])
def test_refusal__another_network_is_said_with_what_there_is(make_subject, name: str) -> None:
    reason = torchvision_file.refusal(make_subject(name, 64))
    assert reason
    assert name in reason
    if name == "resnet10t":
        assert "densenet121" in reason
        assert "resnet50" in reason


def test_refusal__of_volumes() -> None:
    assert torchvision_file.refusal(volume_subject("monai/densenet121")) == (
        "torchvision has no such networks for volumes"
    )
