from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import CheckpointError
from medmoco.evaluation.supervised.classifier import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.exporting.sources import from_classifier, from_file, from_run
from medmoco.exporting.subject import from_encoder, plain_state, save_state
from medmoco.training.checkpoint import load_run


def everything(names) -> set[str]:
    return set().union(*map(set, names.values()))


def test_from_run__knows_views_names_and_the_run(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path, "evaluate.size=48")
    source = from_run(run, "CC0-1.0", pytest.fail)
    assert [view.shape for view in source.views] == [(4, 1, 48, 48)]
    assert source.subject.licence == "CC0-1.0"
    assert source.subject.source == {"kind": "run", "step": 12}
    assert {"planted-file-3.png", "planted-file-3", "planted-patient-1", str(run)} <= everything(source.names)
    assert {str(run.parent / "data")} <= everything(source.names)


def test_from_run__without_its_data_says_what_is_not_looked_for(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    (run.parent / "data" / "train.csv").unlink()
    told: list[str] = []
    source = from_run(run, "not stated", told.append)
    assert source.views == []
    assert len(told) == 1
    assert "manifest cannot be read" in told[0]
    assert str(run) in everything(source.names)


def test_from_run__a_pack_that_is_gone_leaves_out_its_images(tmp_path: Path, make_run) -> None:
    assert from_run(make_run(tmp_path, f"data.pack={tmp_path / 'gone'}"), "x", pytest.fail).views == []


def test_from_run__rows_that_the_pack_left_out_are_not_missed(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path, f"data.pack={tmp_path / 'pack'}", "data.pack_failures=leave_out")
    settings = load_run(run)
    (Path(settings.data.root) / "planted-file-0.png").write_bytes(b"no image")
    assert make_pack(settings.data, tmp_path / "pack", lambda _: None) == 1
    source = from_run(run, "x", pytest.fail)
    assert [len(view) for view in source.views] == [4]
    assert {"planted-file-0.png"} <= everything(source.names)


def test_from_run__damaged_checkpoint_is_told(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    (run / "checkpoints" / "step-000000013.pt").write_bytes(b"cut off")
    told: list[str] = []
    assert from_run(run, "x", told.append).subject.source["step"] == 12
    assert len(told) == 1
    assert "step-000000013.pt is damaged" in told[0]


def test_from_run__no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        from_run(tmp_path, "x", pytest.fail)


def test_from_file__is_the_encoder_of_the_file(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    state = plain_state(from_run(run, "x", pytest.fail).subject)
    file = save_state(state, tmp_path / "weights.safetensors")
    source = from_file(file, load_run(run), "x", pytest.fail)
    assert source.subject.source == {"kind": "file"}
    for name, value in source.subject.backbone.net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert {"planted-file-3.png", str(tmp_path)} <= everything(source.names)
    assert len(source.views) == 1


def test_from_classifier__the_run_around_it_names_the_data(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    settings = load_run(run)
    encoder = from_encoder("random", settings, pytest.fail)
    facts = describe_classifier(
        settings, ("Opacity",), trained="linear probe", encoder={"kind": "random"}, val_auroc={"Opacity": 0.7},
        calibration={"Opacity": {"kind": "platt", "slope": 1, "intercept": 0}}, operating_points={"Opacity": []},
    )  # fmt: skip
    classifier = ClassifierNetwork(encoder.backbone, nn.Linear(encoder.backbone.feature_dim, 1))
    for folder in (run / "evaluation" / "classifier", tmp_path / "alone"):
        save_classifier(folder, classifier, facts)
    source = from_classifier(run / "evaluation" / "classifier", "x", pytest.fail)
    assert {"planted-file-3.png", "planted-patient-1", str(run / "evaluation" / "classifier")} <= everything(
        source.names
    )
    assert source.views == []
    assert source.subject.outputs == ("logits", "probabilities")
    told: list[str] = []
    from_classifier(tmp_path / "alone", "x", told.append)
    assert "no run folder is around the classifier" in told[0]
    assert json.loads((tmp_path / "alone" / "classifier.json").read_text())["labels"] == ["Opacity"]
