from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medmoco.config import ModelSettings
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError, ImageError, SettingsError
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.evaluation.supervised.predict import predict, predict_files
from medmoco.models.backbones import create_backbone
from tests.helpers.supervised import SECRET, make_settings, write_images

LABELS = ("Sick", "Tube")
CALIBRATION = {
    "Sick": {"kind": "platt", "slope": 2.0, "intercept": -0.5},
    "Tube": {"kind": "none", "slope": 1.0, "intercept": 0.0},
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest whose test split has no label columns, and the folder of a classifier."""
    manifest = write_images(tmp_path / "data")
    settings = make_settings(manifest)
    encoder = create_backbone(ModelSettings(backbone="test_resnet"), seed=0, size=32)
    torch.manual_seed(0)
    classifier = ClassifierNetwork(encoder, nn.Linear(encoder.feature_dim, 2))
    facts = describe_classifier(
        settings, LABELS, trained="linear probe", encoder={"kind": "random"}, val_auroc={"Sick": 0.9, "Tube": None},
        calibration=CALIBRATION, operating_points={"Sick": [], "Tube": []},
    )  # fmt: skip
    save_classifier(tmp_path / "classifier", classifier, facts)
    with (manifest / "test.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (manifest / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row[:2] for row in rows)
    return manifest


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict__writes_calibrated_probabilities_by_row_without_labels(manifest: Path) -> None:
    said: list[str] = []
    settings = make_settings(manifest, "views.size=48", "data.canvas_size=64")  # the classifier's own win
    out, folder = manifest.parent / "new" / "p.csv", manifest.parent / "classifier"
    assert predict(settings, folder, out, log=said.append) == 10
    table = read(out)
    assert list(table[0]) == ["row", "Sick", "Tube"]
    assert [int(row["row"]) for row in table] == list(range(2, 12))
    own = make_settings(manifest, "data.labels={}")
    split = load_manifest(own.data, ("test",))["test"]
    scores = load_classifier(folder).score(split, own)
    for column, (slope, intercept) in enumerate([(2.0, -0.5), (1.0, 0.0)]):
        expected = 1 / (1 + np.exp(-(slope * scores[:, column] + intercept)))
        assert [float(row[LABELS[column]]) for row in table] == pytest.approx(expected, rel=1e-5)
    assert "data.canvas_size is 32, as in training, not 64" in said
    assert "evaluate.size is 32, as in training, not 48" in said
    assert "not calibrated, since validation had only one class: Tube" in said
    assert SECRET not in out.read_text() + "".join(said)


def test_predict__paths_and_other_splits_and_conditions_on_request(manifest: Path) -> None:
    out, folder = manifest.parent / "p.csv", manifest.parent / "classifier"
    settings = make_settings(manifest, "evaluate.where=Sick == 1")
    assert predict(settings, folder, out, split="val", with_path=True) == 6
    table = read(out)
    assert list(table[0]) == ["row", "Path", "Sick", "Tube"]
    assert [row["Path"] for row in table] == [f"val-{SECRET}-{number}.png" for number in range(1, 12, 2)]


def test_predict__refuses_what_it_cannot_read_or_write(manifest: Path) -> None:
    settings = make_settings(manifest)
    with pytest.raises(CheckpointError, match="not a classifier folder"):
        predict(settings, manifest, manifest.parent / "p.csv")
    with pytest.raises(SettingsError, match="is a folder; name a CSV file"):
        predict(settings, manifest.parent / "classifier", manifest)
    (manifest.parent / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        predict(settings, manifest.parent / "classifier", manifest.parent / "file" / "p.csv")
    assert not (manifest.parent / "p.csv").exists()


def test_predict__needs_no_patients(manifest: Path) -> None:
    test = manifest / "test.csv"
    test.write_text(test.read_text().replace("PatientID", "Patient ID"))
    said: list[str] = []
    settings = make_settings(manifest)
    assert predict(settings, manifest.parent / "classifier", manifest.parent / "p.csv", log=said.append) == 10
    assert "test: 'Patient ID' is not read as PatientID; every row counts as its own patient" in said


def test_predict_files__needs_only_the_classifier_and_names_files_as_given(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest)
    folder = manifest.parent / "classifier"
    log: list[str] = []
    Path("val").mkdir()
    for file in Path().glob("val-*.png"):
        file.rename("val" / file)
    images = [Path("val"), *sorted(Path().glob("test-*.png"))]
    found = predict_files([*images, images[-1]], folder, manifest / "p.csv", log=log.append)
    table = read(manifest / "p.csv")
    assert found == (len(table), 0)
    assert list(table[0]) == ["Path", *LABELS, "error"]
    assert [row["Path"] for row in table[-10:]] == list(map(str, images[1:]))
    assert {Path(row["Path"]).parent for row in table[:-10]} == {Path("val")}
    expected = load_classifier(folder).predict(images[1:])
    assert [float(row["Sick"]) for row in table[-10:]] == pytest.approx(expected["Sick"], rel=1e-5)
    assert log == ["not calibrated, since validation had only one class: Tube", f"scoring {len(table)} files"]


def test_predict_files__says_why_a_file_has_no_probability(manifest: Path) -> None:
    (manifest / "broken.png").write_bytes(b"nothing")
    good = next(manifest.glob("val-*.png"))
    files = [manifest / "broken.png", good, manifest / "gone.png"]
    found = predict_files(files, manifest.parent / "classifier", manifest / "p.csv", overrides=["train.device=cpu"])
    assert found == (3, 2)
    broken, read_well, gone = read(manifest / "p.csv")
    assert broken["Sick"] == gone["Tube"] == read_well["error"] == ""
    assert broken["error"].startswith("its content is not PNG")
    assert gone["error"] == "the file does not exist"
    assert 0 < float(read_well["Sick"]) < 1


def test_predict_files__refuses_a_folder_without_images(manifest: Path) -> None:
    (manifest / "empty").mkdir()
    classifier = manifest.parent / "classifier"
    with pytest.raises(ImageError, match=r"--images .*/empty: the folder holds no image"):
        predict_files([manifest, manifest / "empty"], classifier, manifest / "p.csv")
    with pytest.raises(SettingsError, match=r"train\.devise.*device"):
        predict_files([manifest], classifier, manifest / "p.csv", overrides=["train.devise=cpu"])
    assert not (manifest / "p.csv").exists()
