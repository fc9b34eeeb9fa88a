from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medmoco.config import load_run
from medmoco.data.pack.pack_writing import make_pack
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.exporting import sources
from medmoco.exporting.sources import Surroundings
from medmoco.exporting.subject import save_state, subject_of


def surroundings(network, warn=pytest.fail) -> Surroundings:
    return sources.surroundings(network, subject_of(network), warn)


def everything(names) -> set[str]:
    return set().union(*map(set, names.values()))


def test_surroundings__of_a_run_are_its_images_and_names(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path, "evaluate.size=48")
    known = surroundings(load_encoder(run))
    assert [view.shape for view in known.views] == [(4, 1, 48, 48)]
    assert {"planted-file-3.png", "planted-file-3", "planted-patient-1", str(run)} <= everything(known.names)
    assert {str(run.parent / "data")} <= everything(known.names)


def test_surroundings__read_the_manifest_once(tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    load = sources.load_manifest
    monkeypatch.setattr(sources, "load_manifest", lambda *given, **more: reads.append(given) or load(*given, **more))
    surroundings(load_encoder(make_run(tmp_path)))
    assert len(reads) == 1


def test_surroundings__without_the_data_say_what_is_not_looked_for(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    (run.parent / "data" / "train.csv").unlink()
    told: list[str] = []
    known = surroundings(load_encoder(run), told.append)
    assert known.views == []
    assert len(told) == 1
    assert "manifest cannot be read" in told[0]
    assert str(run) in everything(known.names)


def test_surroundings__a_pack_that_is_gone_leaves_out_its_images(tmp_path: Path, make_run) -> None:
    assert surroundings(load_encoder(make_run(tmp_path, f"data.pack={tmp_path / 'gone'}"))).views == []


def test_surroundings__rows_that_the_pack_left_out_are_not_missed(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path, f"data.pack={tmp_path / 'pack'}", "data.pack_failures=leave_out")
    settings = load_run(run)
    (Path(settings.data.root) / "planted-file-0.png").write_bytes(b"no image")
    assert make_pack(settings.data, tmp_path / "pack", lambda _: None) == 1
    known = surroundings(load_encoder(run))
    assert [len(view) for view in known.views] == [4]
    assert {"planted-file-0.png"} <= everything(known.names)


def test_surroundings__of_a_weights_file_are_those_its_settings_name(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    state = subject_of(load_encoder(run)).state
    file = save_state(state, tmp_path / "weights.safetensors")
    encoder = load_encoder(file, load_run(run))
    for name, value in encoder.module.net.state_dict().items():
        assert torch.equal(value, state[name]), name
    known = surroundings(encoder)
    assert {"planted-file-3.png", str(tmp_path)} <= everything(known.names)
    assert len(known.views) == 1
    told: list[str] = []
    alone = surroundings(load_encoder(file, {"views": {"mean": 0.5, "std": 0.25, "size": 32}}), told.append)
    assert (alone.views, len(told)) == ([], 1)
    assert "no settings name the encoder's manifest" in told[0]
    assert str(tmp_path) in everything(alone.names)


def test_surroundings__the_run_around_a_classifier_names_the_data(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    settings = load_run(run)
    backbone = load_encoder("random", settings).module
    facts = describe_classifier(
        settings, ("Opacity",), trained="linear probe", encoder={"kind": "random"}, val_auroc={"Opacity": 0.7},
        calibration={"Opacity": {"kind": "platt", "slope": 1, "intercept": 0}}, operating_points={"Opacity": []},
    )  # fmt: skip
    network = ClassifierNetwork(backbone, nn.Linear(backbone.feature_dim, 1))
    for folder in (run / "evaluation" / "classifier", tmp_path / "alone"):
        save_classifier(folder, network, facts)
    known = surroundings(load_classifier(run / "evaluation" / "classifier"))
    names = everything(known.names)
    assert {"planted-file-3.png", "planted-patient-1", str(run / "evaluation" / "classifier")} <= names
    assert known.views == []
    told: list[str] = []
    surroundings(load_classifier(tmp_path / "alone"), told.append)
    assert "the classifier is not in a run folder" in told[0]
