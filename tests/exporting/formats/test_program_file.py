from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medmoco.errors import CheckpointError
from medmoco.exporting.formats import program_file
from medmoco.exporting.scan import Search
from medmoco.exporting.subject import Subject

TRACES = {"trace": ["site-packages", ".py:", 'File "/', str(Path(__file__).parents[3])]}


def test_write__holds_the_whole_computation_and_names_no_path(tmp_path: Path, make_subject, read_back) -> None:
    found, expected = read_back("program", make_subject("test_vit", head=True, mirror=True, exclusive=True), tmp_path)
    assert set(found) == {"logits", "probabilities"}
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=1e-5)
    file = tmp_path / "classifier.pt2"
    program = torch.export.load(file).module()
    assert [program(torch.zeros(count, 1, 32, 32))[0].shape[0] for count in (1, 5)] == [1, 5]
    assert Search(TRACES).content(file.read_bytes()) is None


@pytest.mark.slow
def test_write__scores_of_patches_come_along(tmp_path: Path, make_subject, read_back) -> None:
    subject = make_subject("test_vit", head=True, mirror=True, exclusive=True, top_patches=2)
    found, expected = read_back("program", subject, tmp_path)
    assert set(found) == {"logits", "probabilities", "patch_scores"}
    assert found["patch_scores"].shape == (3, 3, 2, 2)
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=1e-5)


def test_write__unstripped_would_name_this_machine(
    tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_file, "_strip", lambda _: None)
    monkeypatch.setattr(Subject, "graph", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    (file,) = program_file.write(make_subject("test_vit"), tmp_path)
    assert Search(TRACES).content(file.read_bytes()) == "trace"


def test_write__what_cannot_be_traced_is_said(tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("test_vit")

    class Untraceable(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else images + 1

    monkeypatch.setattr(Subject, "graph", Untraceable())
    with pytest.raises(CheckpointError, match="torch cannot trace") as error:
        program_file.write(subject, tmp_path)
    assert len(str(error.value).splitlines()) == 2
