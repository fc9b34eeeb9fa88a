from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medmoco.exporting.standalone import network_source
from medmoco.exporting.subject import subject_of
from tests.helpers.segmenters import make_segmenter

BACKBONES = [
    (2, "test_resnet", 32),
    pytest.param(2, "convnext_atto", 32, marks=pytest.mark.slow),
    pytest.param(3, "nnunet/resenc_4stages_quarter", 16, marks=pytest.mark.slow),
    (3, "monai/resnet10_quarter", 32),
    pytest.param(3, "monai/densenet121", 32, marks=pytest.mark.slow),
    pytest.param(3, "monai/swin_unetr", 32, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dimensions", "name", "size"), BACKBONES)
def test_network__is_the_one_that_was_trained(tmp_path: Path, dimensions: int, name: str, size: int) -> None:
    module = ModuleType("shipped_network")
    sys.modules[module.__name__] = module
    exec(compile(network_source(), "network.py", "exec"), module.__dict__)
    segmenter = make_segmenter(tmp_path, dimensions, f"model.backbone={name}", f"views.size={size}")
    subject = subject_of(segmenter)
    net = module.network(json.loads(json.dumps(subject.build)))
    net.load_state_dict(subject.state, strict=True)
    images = torch.randn((2, 1, *[size] * dimensions), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores, expected = net.eval()(images), segmenter.module(images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    assert scores.std() > 0


def test_network_source__needs_nothing_of_medmoco() -> None:
    text = network_source()
    assert "medmoco" not in "\n".join(line for line in text.splitlines() if "import" in line)
    assert "__main__" not in text
