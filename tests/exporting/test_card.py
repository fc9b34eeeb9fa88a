from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from medmoco.config import load_run
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.exporting.card import gather, write_card, write_plain_card
from medmoco.exporting.subject import subject_of
from medmoco.exporting.volume_contract import steps_of_volumes
from tests.helpers.volume_subjects import CT, prepared, volume_subject

CONTRACT = {
    "input": {"shape": ["batch", 1, 32, 32]},
    "outputs": [{"name": "features", "shape": ["batch", 512]}],
    "mirror": {"average": False},
    "scored_stages": 1,
    "formats": {"onnx": {"load": ["features = session.run(None, {'image': images})[0]"]}},
    "files": {"encoder.onnx": {"bytes": 7000, "sha256": "ab" * 32}},
    "licence": "not stated",
}
PARITY = {"formats": [{"format": "onnx", "path": "encoder.onnx", "max_relative_difference": 1.5e-6, "tolerance": 1e-4}]}


@pytest.fixture
def run(tmp_path: Path, make_run) -> Path:
    folder: Path = make_run(tmp_path)
    return folder


def make_card(run: Path, *, mirror: bool = False, stages: int = 1) -> str:
    settings = load_run(run)
    contract = CONTRACT | {"mirror": {"average": mirror}, "scored_stages": stages}
    return write_card(gather(run, settings, 12, load_manifest(settings.data, ("train",))["train"]), contract, PARITY)


def test_card__has_every_section_in_order(run: Path) -> None:
    titles = [line for line in make_card(run).splitlines() if line.startswith(("## ", "# resnet"))]
    assert titles == [
        "# resnet18, pretrained with medmoco", "## Intended use", "## Out of scope", "## Data", "## Method",
        "## Compute", "## Scores", "## Files", "## Limits", "## Privacy", "## Left to the author",
    ]  # fmt: skip


def test_card__says_what_it_must(run: Path) -> None:
    card = make_card(run)
    for text in (
        "not a medical device", "32 x 32 pixels to 512 features, from step 12 ", "was stopped early; 50 steps",
        "Licence: not stated", "method.temperature: 0.2", "views.crop_scale: [0.3, 1.0]", "train.lr: 0.03",
        "train.clip_norm: null",
        "Initialised with random weights", f"| encoder.onnx | 7,000 | {'ab' * 32} |",
        "| onnx | encoder.onnx | 1.5e-06 | 0.0001 |", "# onnx\nfeatures = session.run(None, {'image': images})[0]",
        "Licence: not stated", "its features are not findings",
    ):  # fmt: skip
        assert text in card, text


def test_card__says_that_scores_average_mirror_images(run: Path) -> None:
    assert "average the features of both" not in make_card(run)
    assert "To reproduce the scores, average the features of both." in make_card(run, mirror=True)


def test_card__says_that_scores_are_of_several_stages(run: Path) -> None:
    assert "evaluate.stages" not in make_card(run)
    assert "features of the network's last 3 stages" in make_card(run, stages=3)


def test_card__counts_data_without_names(run: Path) -> None:
    card = make_card(run)
    assert "Training: 6 images of 3 patients" in card
    assert "| Opacity | 2 | 2 | 1 | 1 |" in card


def test_card__without_patient_ids_counts_no_patients(run: Path) -> None:
    manifest = run.parent / "data" / "train.csv"
    manifest.write_text(manifest.read_text().replace("PatientID", "Code"))
    settings = load_run(run)
    train = load_manifest(settings.data, ("train",))["train"]
    (run / "environment.json").write_text(json.dumps({"manifest_sha256": train.sha256}))
    assert "Training: 6 images of an unknown number of patients" in make_card(run)


def test_card__copies_nothing_it_was_not_told_to(run: Path) -> None:
    card = make_card(run)
    assert "planted" not in card
    assert "| Nodule | some, chosen by id; labels of 10 % of training patients |" in card
    assert str(run) not in card


def test_card__scores_of_the_test_split_with_intervals_and_counts(run: Path) -> None:
    card = make_card(run)
    assert "| Opacity | all | linear | run | 40 | 11 | 23 | 0.875 | 0.801 to 0.923 | 0.700 |" in card
    assert "0.875 (predicts the majority)" in card
    assert "| Empty | all | linear | run | 40 | 11 | 23 | undefined | none | undefined |" in card
    assert "0.987" not in card


def test_card__a_leak_is_said_above_the_scores(run: Path) -> None:
    assert "shares" not in make_card(run)
    file = run / "evaluation" / "scores.json"
    leak = {"pretraining": {"patients": 3, "images": 4}, "train": None}
    file.write_text(json.dumps([record | {"leakage": leak} for record in json.loads(file.read_text())]))
    card = make_card(run)
    said = (
        "**test shares 3 patients and 4 images with the data the encoder was pretrained on: its scores are inflated.**"
    )
    assert card.index(said) < card.index("| Opacity | all |")


def test_card__time_is_of_the_exported_steps(run: Path) -> None:
    # 12 steps of 4 images at 8 images per second; the record of step 18 is of later training.
    assert "- 12 training steps took 0:00:06 at 8 images per second\n" in make_card(run)


def test_card__unknown_is_said(run: Path) -> None:
    for name in ("status.json", "environment.json", "metrics.jsonl", "evaluation/scores.json"):
        (run / name).unlink()
    card = make_card(run)
    assert "has no record of how it ended" in card
    assert "Counts: unknown" in card
    assert "## Compute\n\nNot recorded." in card
    assert "None: the folder `evaluation` of the run has no scores" in card


def test_card__says_what_validation_labels_were_used_for(run: Path) -> None:
    (run / "status.json").write_text(json.dumps({"state": "done", "step": 18, "steps": 50}))
    settings = load_run(run)
    train = load_manifest(settings.data, ("train",))["train"]
    card = write_card(gather(run, settings, 12, train, "kNN score on val"), CONTRACT, PARITY)
    assert (
        "from step 12 of a self-supervised run that used no labels except to choose this step by its kNN score on val"
        " and to stop the run early. The run ended at step 18, since its kNN score on val did not improve; 50 steps"
    ) in card
    assert "no scores of this checkpoint" in card  # evaluation/ may have scored the newest one

    (run / "evaluation" / "classifier").mkdir()
    file = run / "evaluation" / "classifier" / "classifier.json"
    for step, has_scores in ((12, True), (18, False)):
        file.write_text(json.dumps({"encoder": {"kind": "run", "step": step}}))
        card = write_card(gather(run, settings, 12, train, "kNN score on val"), CONTRACT, PARITY)
        assert ("no scores of this checkpoint" not in card) == has_scores


def test_card__changed_manifest_is_not_counted(run: Path) -> None:
    manifest = run.parent / "data" / "train.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")
    assert "Counts: unknown" in make_card(run)


def test_card__a_label_cannot_break_its_table(run: Path) -> None:
    file = run / "evaluation" / "scores.json"
    scores = json.loads(file.read_text())
    scores[0]["label"] = "A|B\n# C"
    file.write_text(json.dumps(scores))
    assert "| A\\|B # C | all |" in make_card(run)


def test_gather__damaged_scores_are_refused(run: Path) -> None:
    (run / "evaluation" / "scores.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"scores\.json is damaged"):
        make_card(run)


def test_plain_card__of_a_weights_file_knows_no_run(run: Path) -> None:
    settings = load_run(run)
    subject = subject_of(load_encoder("random", settings))
    card = write_plain_card(subject, CONTRACT | {"licence": "CC0-1.0"}, PARITY)
    assert "32 x 32 pixels to 512 features, from a weights file of the user." in card
    assert "- Licence: CC0-1.0" in card
    assert "## Method" not in card
    assert "planted" not in card


def test_plain_card__of_a_classifier_names_labels_and_thresholds(run: Path) -> None:
    encoder = subject_of(load_encoder("random", load_run(run)))
    facts = {
        "labels": ["Opacity", "No|dule"], "exclusive": False, "trained": "fine-tuned", "seed": 3, "medmoco": "0.1.0",
        "label_policies": {"Opacity": {"uncertain": "zero", "missing": "ignore"}},
        "val_auroc": {"Opacity": 0.8123, "No|dule": None},
        "calibration": {"Opacity": {"kind": "platt"}, "No|dule": {"kind": "none"}},
        "operating_points": {"Opacity": [{"specificity": 0.9, "threshold": -1.25}], "No|dule": []},
        "where": "planted-folder",
    }  # fmt: skip
    outputs = [{"name": name, "shape": ["batch", 2]} for name in ("logits", "probabilities")]
    head = nn.Linear(encoder.backbone.feature_dim, 2)
    subject = replace(encoder, head=head, classifier=facts | {"encoder": {"kind": "run", "step": 40}})
    card = write_plain_card(subject, CONTRACT | {"outputs": outputs}, PARITY)
    for text in (
        "# resnet18, a classifier trained with medmoco", "2 logits and 2 probabilities, trained as: fine-tuned.",
        "| Opacity | zero | 0.812 | platt | 0.9: -1.250 |", "| No\\|dule | not recorded | undefined | none | none |",
        "a momentum-contrast run, step 40", "not a medical device", "from this classifier alone\n",
    ):  # fmt: skip
        assert text in card, text
    assert "planted" not in card
    assert "not findings" not in card


@pytest.mark.parametrize("volumes", ["sliding", "resized"])
def test_plain_card__of_volumes(volumes: str) -> None:
    subject = volume_subject(volumes=volumes)
    contract = CONTRACT | {
        **steps_of_volumes(subject.preprocessing), "input": {"shape": ["batch", 1, 32, 32, 32]},
    }  # fmt: skip
    card = write_plain_card(subject, contract, PARITY)
    for text in (
        "An encoder of volumes of 32 x 32 x 32 voxels to 512 features", "a spacing of 1.5 x 1 x 2 mm",
        "percentiles 0.5 and 99.5 of the body", "axes of RAS", "training volumes",
    ):  # fmt: skip
        assert text in card, text
    assert ("Overlapping windows of the input size" in card) == (volumes == "sliding")
    assert ("The whole volume is resized" in card) == (volumes == "resized")
    assert "pixels" not in card
    ct = write_plain_card(subject, contract | steps_of_volumes(prepared(**CT)), PARITY)
    assert "the spacing of their files, and a window of centre 40 and width 400 HU" in ct
