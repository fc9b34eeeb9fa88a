from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from medmoco.exporting.formats import onnx_file
from medmoco.exporting.scan import Search
from medmoco.exporting.subject import Subject

TRACES = {"trace": ["site-packages", str(Path(__file__).parents[3])]}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, make_subject, read_back):
    """Return the folder, the outputs found in ONNX Runtime and those expected."""
    folder = tmp_path_factory.mktemp("onnx")
    return folder, *read_back("onnx", make_subject("test_vit", head=True, mirror=True, exclusive=True), folder)


def test_write__a_classifier_gives_logits_and_calibrated_probabilities(classifier) -> None:
    folder, found, expected = classifier
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("logits", ["batch", 3]), ("probabilities", ["batch", 3]),
    ]  # fmt: skip
    for key in ("logits", "probabilities"):
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5)


def test_write__any_number_of_images(classifier) -> None:
    session = onnxruntime.InferenceSession(classifier[0] / "classifier.onnx")
    for count in (1, 5):
        logits, _ = session.run(None, {"image": np.zeros((count, 1, 32, 32), np.float32)})
        assert logits.shape == (count, 3)


def test_write__metadata_is_an_allow_list(classifier) -> None:
    file = classifier[0] / "classifier.onnx"
    model = onnx.load(file)
    assert model.producer_name == "medmoco"
    parts = [model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.value_info]
    assert not any(part.doc_string or part.metadata_props for part in [model, *parts])
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert Search(TRACES).content(file.read_bytes()) is None


def test_write__unstripped_would_name_this_machine(
    tmp_path: Path, make_subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_strip", lambda _: None)
    monkeypatch.setattr(Subject, "graph", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval())
    (file,) = onnx_file.write(make_subject("test_vit"), tmp_path)
    assert Search(TRACES).content(file.read_bytes()) == "trace"


def test_refusal__weights_beyond_one_file(make_subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("test_vit")
    assert onnx_file.refusal(subject) is None
    monkeypatch.setattr(onnx_file, "LIMIT", 1000)
    reason = onnx_file.refusal(subject)
    assert reason
    assert "2 GB that one ONNX file can hold" in reason
