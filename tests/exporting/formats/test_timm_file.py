from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medmoco.exporting.formats import huggingface, monai_bundle, safetensors_file, timm_file
from tests.helpers.volume_subjects import volume_subject


@pytest.mark.parametrize("head", [False, True])
def test_write__timm_reads_it_itself(tmp_path: Path, make_subject, read_back, head: bool) -> None:
    found, expected = read_back("timm", make_subject("resnet10t", head=head), tmp_path)
    assert set(found) == ({"logits", "probabilities"} if head else {"features"})
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=2e-6)


def test_write__is_the_file_of_safetensors(tmp_path: Path, make_subject) -> None:
    subject = make_subject("test_vit")
    (first,) = safetensors_file.write(subject, tmp_path)
    content = first.read_bytes()
    assert timm_file.write(subject, tmp_path) == [first]
    assert first.read_bytes() == content


def test_describe__timm_is_strict(tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("test_vit")
    (file,) = timm_file.write(subject, tmp_path)
    monkeypatch.chdir(tmp_path)
    scope = {"images": torch.randn(2, 1, 32, 32)}
    code = "import timm\n" + "\n".join(timm_file.describe(subject)["load"])
    exec(code, scope)
    torch.testing.assert_close(scope["outputs"], subject.backbone(scope["images"]))
    state = load_file(file)
    state.pop("norm.bias")
    save_file(state, file)
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        exec(code, scope)


def test_refusal__names_other_libraries(make_subject) -> None:
    assert timm_file.refusal(make_subject("monai/densenet121")) == "monai/densenet121 is not a timm network"


@pytest.mark.parametrize("form", [timm_file, huggingface, monai_bundle])
def test_refusal__of_what_has_no_name(make_subject, form) -> None:
    said = form.refusal(make_subject("moco-v3/vit_conv_tiny"))
    assert said == "timm has no name for moco-v3/vit_conv_tiny with its stem"


@pytest.mark.parametrize("form", [timm_file, huggingface])
def test_refusal__of_volumes(form) -> None:
    assert form.refusal(volume_subject()) == "timm has no networks for volumes"
