"""The evaluation's records, differences and table on made features, and the whole of it on made images."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from medmoco.config import RunSettings, load
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError, ManifestError, SettingsError
from medmoco.evaluation import evaluate as module
from medmoco.evaluation.features import inputs
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.features.encoder_files import Provenance
from medmoco.evaluation.features.features import Extracted
from medmoco.evaluation.leakage.leakage import Pretraining
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.metrics.auroc import bootstrap_auroc
from medmoco.evaluation.records import Leakage, Overlap
from medmoco.evaluation.results import Evaluation
from medmoco.evaluation.scoring import study
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.models.backbones import Backbone
from tests.helpers.squares import SMALL, write_images

FILES = ("scores.json", "differences.json", "predictions.csv", "table.txt")
FILES += ("operating.json", "calibration.json", "subgroups.json")


@dataclass(frozen=True)
class Split:
    """As much of a split as evaluation needs."""

    name: str
    rows: NDArray[np.int64]
    patients: NDArray[np.int64]
    labels: NDArray[np.float32]
    label_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    sha256: str = "0" * 64

    @property
    def files(self) -> NDArray[np.object_]:
        return np.array([f"{self.name}/{row}.png" for row in self.rows], dtype=object)

    @property
    def frames(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    @property
    def table(self) -> pd.DataFrame:
        sides = np.where(self.rows % 2, "L", "R")
        return pd.DataFrame({"PatientID": self.patients.astype(str), "Side": sides})

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, mask: NDArray[np.bool_]) -> Split:
        return replace(self, rows=self.rows[mask], patients=self.patients[mask], labels=self.labels[mask])


def evaluate(settings: RunSettings, encoder: str, out: Path, log: Callable[[str], None] = lambda _: None) -> Evaluation:
    """Score both splits."""
    return module.evaluate(settings, {"run": encoder}, out, test=True, log=log)


def settings_of(tmp_path: Path, *overrides: str) -> RunSettings:
    paths = [f"out={tmp_path / 'run'}", f"data.manifest={tmp_path}", f"data.root={tmp_path}"]
    return load(
        None, [*paths, "data.labels=[Easy, Hard]", "evaluate.bootstrap=200", "model.backbone=resnet18", *overrides]
    )


def made_splits() -> dict[str, Split]:
    """Two or so images per patient; row numbers with gaps, as after a restriction."""
    splits = {}
    for number, (name, size) in enumerate({"train": 300, "val": 150, "test": 160}.items()):
        generator = np.random.default_rng([3, number])
        labels = (generator.random((size, 2)) < (0.4, 0.3)).astype(np.float32)
        labels[generator.random(size) < 0.1, 1] = np.nan
        patients = 1000 * number + generator.integers(size // 2, size=size)
        splits[name] = Split(name, 2 + 3 * np.arange(size), patients, labels, ("Easy", "Hard"))
    return splits


STRENGTHS = {"run": 1.5, "untrained": 0.7, "pixels": 0.3}


def made_features(split: Split, encoder: str) -> NDArray[np.float32]:
    """Features that tell the labels with a strength of the encoder's own."""
    generator = np.random.default_rng([len(encoder), len(split)])
    strength = STRENGTHS[encoder]
    noise = generator.normal(size=(len(split), 16))
    noise[:, :2] += strength * np.nan_to_num(split.labels[:, :2]) * (1.0, 0.6)
    return noise.astype(np.float32)


def digests_of(split: Split) -> tuple[bytes, ...]:
    return tuple(file.encode() for file in split.files)


def stand_in(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Split]:
    """Put made splits and features in the places of manifest, encoders and images."""
    found = made_splits()
    for name in found:
        (folder / f"{name}.csv").touch()

    def extract(encoders: dict[str, nn.Module], split: Split, *_: Any) -> Extracted:
        return Extracted({name: made_features(split, name) for name in encoders}, (), digests_of(split))

    patch.setattr(inputs, "load_manifest", lambda _, names, **_given: {name: found[name] for name in names})
    patch.setattr(inputs, "check_images", lambda split, _: split)
    preprocessing = Preprocessing(canvas_size=32, bit_depth=8, window="voi", mean=0.5, std=0.25, size=32)

    def stand_in_encoder(*_: Any, **__: Any) -> Encoder:
        return Encoder(Backbone("resnet18", nn.Linear(16, 16), 16), preprocessing, Provenance("run", 7))

    patch.setattr(study, "load_encoder", stand_in_encoder)
    patch.setattr(study, "settings_of_control", lambda _source, _size, settings: (settings, []))
    patch.setattr(inputs, "extract", extract)
    return found


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Split]:
    """Stand-ins that a test changes in place."""
    return stand_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """What the stand-ins score as they are, and its folder; for tests that read it and change nothing."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(folder, patch)
        return evaluate(settings_of(folder), "run-folder", folder / "scores"), folder / "scores"


def record_of(records: Sequence[Any], *key: str) -> Any:
    names = ("label", "split", "method", "encoder", "control")
    (found,) = [r for r in records if all(getattr(r, name) == value for name, value in zip(names, key, strict=False))]
    return found


def test_evaluate__records_hold_what_is_promised_and_files_are_strict(scored: tuple[Evaluation, Path]) -> None:
    found, folder = scored
    written = json.loads((folder / "scores.json").read_text(), parse_constant=pytest.fail)
    again = Evaluation.load(folder)
    for name in ("scores", "differences", "operating_points", "calibration", "subgroups", "table"):
        assert getattr(again, name) == getattr(found, name)
    pd.testing.assert_frame_equal(again.predictions, found.predictions, rtol=1e-8)
    assert {record["version"] for record in written} == {1}
    assert [record["encoder"] for record in written if record["primary"]] == ["run"] * 12
    assert len(found.scores) == 3 * 2 * 2 * 3  # labels and macro, splits, methods, encoders
    assert len(found.differences) == 3 * 2 * 2 * 2
    for record in found.scores:
        assert 0 <= record.auroc_low <= record.auroc <= record.auroc_high <= 1
        assert record.seed == 0
        assert record.draws == 1
        assert record.where is None
    linear = record_of(found.scores, "Hard", "test", "linear", "run")
    assert linear.strength[0] in settings_of(folder).evaluate.strengths
    assert linear.label_policy == {"uncertain": "ignore", "missing": "ignore"}
    assert record_of(found.scores, "Hard", "test", "knn", "run").neighbours == 20


@pytest.mark.parametrize("method", ["linear", "knn"])
@pytest.mark.parametrize("label", ["Easy", "Hard"])
def test_evaluate__scores_are_those_of_its_predictions(
    scored: tuple[Evaluation, Path], label: str, method: str
) -> None:
    """From predictions.csv alone, scikit-learn finds every number of the record."""
    found, folder = scored
    record = record_of(found.scores, label, "test", method, "run")
    with (folder / "predictions.csv").open() as file:
        lines = [
            line
            for line in csv.DictReader(file)
            if (line["label"], line["split"], line["method"], line["encoder"]) == (label, "test", method, "run")
        ]
    targets, scores = (np.array([float(line[name]) for line in lines]) for name in ("target", "score"))
    split = made_splits()["test"]
    column = split.label_names.index(label)
    known = ~np.isnan(split.labels[:, column])
    assert [int(line["row"]) for line in lines] == split.rows[known].tolist()
    assert targets.tolist() == split.labels[known, column].tolist()
    assert record.n == known.sum() == len(lines)
    assert record.n_positive == targets.sum()
    assert record.n_patients == len(set(split.patients[known].tolist()))
    assert record.auroc == pytest.approx(roc_auc_score(targets, scores), abs=1e-9)
    assert record.average_precision == pytest.approx(average_precision_score(targets, scores), abs=1e-9)


def plain_auroc(targets: list[int], scores: list[float]) -> Fraction:
    """The share of pairs of a positive and a negative that are in order, a tie being half of one, in whole numbers."""
    classes = ([score for score, target in zip(scores, targets, strict=True) if target == one] for one in (1, 0))
    pairs = [Fraction(int(a > b) + int(a >= b), 2) for a, b in itertools.product(*classes)]
    return sum(pairs, Fraction(0)) / len(pairs)


def test_evaluate__neighbours_that_all_agree_are_ties(splits: dict[str, Split], tmp_path: Path) -> None:
    """Train has one negative, which few have as a neighbour: all other scores are 1, and no order among them counts."""
    splits["train"].labels[:, 0], splits["train"].labels[0, 0] = 1, 0
    found = evaluate(settings_of(tmp_path, "evaluate.neighbours=10"), "run-folder", tmp_path / "scores")
    table = pd.read_csv(tmp_path / "scores/predictions.csv")
    for key, lines in table.groupby(["label", "split", "method", "encoder"]):
        record = record_of(found.scores, *key)
        exact = plain_auroc(lines["target"].tolist(), lines["score"].tolist())
        assert record.auroc == pytest.approx(float(exact), abs=1e-12), key
    knn = table[(table["label"] == "Easy") & (table["method"] == "knn")]
    assert 0.8 < (knn["score"] == 1).mean() < 1


def test_evaluate__differences_are_paired(scored: tuple[Evaluation, Path]) -> None:
    found, folder = scored
    run, control = (record_of(found.scores, "Easy", "test", "linear", name) for name in ("run", "pixels"))
    difference = record_of(found.differences, "Easy", "test", "linear", "run", "pixels")
    assert difference.difference == pytest.approx(run.auroc - control.auroc)
    assert 0 < difference.low < difference.difference < difference.high
    assert difference.excludes_zero

    scores = {}
    with (folder / "predictions.csv").open() as file:
        for line in csv.DictReader(file):
            if (line["label"], line["split"], line["method"]) == ("Easy", "test", "linear"):
                scores.setdefault(line["encoder"], []).append(float(line["score"]))
    test = made_splits()["test"]
    draws = [
        bootstrap_auroc(test.labels[:, 0], np.array(scores[name]), test.patients, draws=200, seed=0)
        for name in ("run", "pixels")
    ]
    assert (difference.low, difference.high) == pytest.approx(np.percentile(draws[0] - draws[1], [2.5, 97.5]))


def test_evaluate__a_label_of_one_class_is_undefined_and_left_out_of_the_macro(
    splits: dict[str, Split], tmp_path: Path
) -> None:
    splits["test"].labels[:, 1] = np.where(np.isnan(splits["test"].labels[:, 1]), np.nan, 0)
    found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    hard, easy, macro = (record_of(found.scores, name, "test", "linear", "run") for name in ("Hard", "Easy", "macro"))
    assert hard.undefined == "undefined (no positives)"
    assert (hard.auroc, hard.auroc_low, hard.auroc_high, hard.average_precision) == (None,) * 4
    assert hard.n_positive == 0 < hard.n
    assert macro.auroc == easy.auroc
    assert (macro.auroc_low, macro.auroc_high) == (easy.auroc_low, easy.auroc_high)
    assert (macro.n_labels_defined, macro.n_labels) == (1, 2)
    assert record_of(found.scores, "macro", "val", "linear", "run").n_labels_defined == 2
    assert record_of(found.differences, "Hard", "test", "linear", "run", "pixels").difference is None
    assert "undefined (no positives)" in found.table
    assert "mean of 1 of 2 labels" in found.table
    assert "nan" not in found.table.lower()


def test_evaluate__a_label_that_cannot_be_learnt_is_undefined(splits: dict[str, Split], tmp_path: Path) -> None:
    splits["train"].labels[:] = 1
    found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    assert {record.undefined for record in found.scores if record.label != "macro"} == {
        "undefined (no negatives in train)"
    }
    assert record_of(found.scores, "macro", "test", "knn", "run").undefined == "undefined (no label is defined)"
    assert (tmp_path / "scores/predictions.csv").read_text().count("\n") == 1


def test_evaluate__macro_is_the_mean_of_labels_in_every_draw(scored: tuple[Evaluation, Path]) -> None:
    found, _ = scored
    easy, hard, macro = (record_of(found.scores, name, "test", "knn", "run") for name in ("Easy", "Hard", "macro"))
    assert macro.auroc == pytest.approx((easy.auroc + hard.auroc) / 2)
    assert macro.auroc_high - macro.auroc_low < hard.auroc_high - hard.auroc_low
    assert macro.n == 160
    assert macro.n_positive == (np.nan_to_num(made_splits()["test"].labels) == 1).any(axis=1).sum()


def test_evaluate__a_share_of_patients_is_averaged_over_draws(
    splits: dict[str, Split], scored: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, "evaluate.label_fraction=0.1", "evaluate.label_draws=4")
    found = evaluate(settings, "run-folder", tmp_path / "scores")
    record = record_of(found.scores, "Easy", "test", "linear", "run")
    patients = len(set(splits["train"].patients.tolist()))
    assert record.n_train_patients == (round(0.1 * patients),) * 4
    assert len(set(record.auroc_of_draws)) > 1
    assert record.auroc == pytest.approx(np.mean(record.auroc_of_draws))
    assert record.draws == len(record.strength) == 4
    assert record.label_fraction == 0.1
    assert record_of(scored[0].scores, "Easy", "test", "linear", "run").auroc > record.auroc
    taught = [record_of(found.scores, "Hard", "test", method, "run") for method in ("linear", "knn")]
    assert taught[0].n_train == taught[1].n_train


def test_evaluate__a_score_that_learned_nothing_is_flagged(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(encoders: dict[str, nn.Module], split: Split, *_: Any) -> Extracted:
        return Extracted(dict.fromkeys(encoders, np.ones((len(split), 16), np.float32)), (), digests_of(split))

    monkeypatch.setattr(inputs, "extract", constant)
    found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    for method in ("linear", "knn"):
        record = record_of(found.scores, "Easy", "test", method, "run")
        assert record.auroc == 0.5
        assert record.flag == "all scores are equal"
    assert "0.500!" in found.table
    assert "! test, Easy, knn, run: all scores are equal" in found.table


def test_evaluate__where_restricts_every_split(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "select_where", lambda split, words: split.select(split.labels[:, 0] == 1))
    settings = settings_of(tmp_path, "evaluate.where='Easy == 1'", "data.labels=[Hard]")
    found = evaluate(settings, "run-folder", tmp_path / "scores")
    test = splits["test"]
    expected = int(((test.labels[:, 0] == 1) & ~np.isnan(test.labels[:, 1])).sum())
    record = record_of(found.scores, "Hard", "test", "linear", "run")
    assert record.n == expected
    assert record.where == "Easy == 1"
    assert "where Easy == 1" in found.table
    assert "macro" not in found.table  # it would repeat the one label


@pytest.mark.parametrize("absent", ["val", "test"])
def test_evaluate__a_missing_split_is_said_and_the_others_scored(
    splits: dict[str, Split], tmp_path: Path, absent: str
) -> None:
    (tmp_path / f"{absent}.csv").unlink()
    found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    assert {record.split for record in found.scores} == {"val", "test"} - {absent}
    assert f"{absent}: the manifest has no {absent} rows to score" in found.table
    chosen = "strength not chosen on val: no such split" in found.table
    assert chosen == (absent == "val")


def test_evaluate__notices_of_the_manifest_are_said(splits: dict[str, Split], tmp_path: Path) -> None:
    splits["test"] = replace(splits["test"], notices=("test: no PatientID column",))
    found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    assert found.table.count("test: no PatientID column") == 1


def test_evaluate__a_test_split_that_was_learned_from_is_refused_or_every_score_says_so(
    splits: dict[str, Split], tmp_path: Path
) -> None:
    shared = np.unique(splits["train"].patients)[:3]
    splits["test"].patients[:5] = shared[[0, 0, 1, 1, 2]]
    with pytest.raises(ManifestError) as caught:
        evaluate(settings_of(tmp_path), "random", tmp_path / "refused")
    message = str(caught.value)
    assert message.startswith("test shares 3 patients and 0 images with train: its scores are inflated\n")
    assert "evaluate.allow_leakage=true" in message
    assert len(message.splitlines()) <= 5
    assert not any((tmp_path / "refused").iterdir())
    found = evaluate(settings_of(tmp_path, "evaluate.allow_leakage=true"), "random", tmp_path / "scores")
    none, shared = Overlap(patients=0, images=0), Overlap(patients=3, images=0)
    for record in [*found.scores, *found.differences]:
        assert record.leakage == Leakage(pretraining=none, train=shared if record.split == "test" else none)
    assert found.table.count("  ! test shares 3 patients and 0 images with train") == 3  # labels and macro
    assert "val shares" not in found.table


def test_evaluate__val_may_be_learned_from_but_says_so(splits: dict[str, Split], tmp_path: Path) -> None:
    splits["val"].patients[:2] = splits["train"].patients[0]
    found = evaluate(settings_of(tmp_path), "random", tmp_path / "scores")
    assert record_of(found.scores, "Easy", "val", "knn", "pixels").leakage.train == Overlap(patients=1, images=0)
    assert "! val shares 1 patients and 0 images with train" in found.table


def test_evaluate__what_a_weights_file_learned_from_is_unknown(splits: dict[str, Split], tmp_path: Path) -> None:
    found = evaluate(settings_of(tmp_path), "encoder.safetensors", tmp_path / "scores")
    assert record_of(found.scores, "Easy", "test", "knn", "run").leakage.pretraining is None
    assert "a weights file does not say what it was pretrained on" in found.table


@pytest.mark.parametrize(("names", "absent"), [(("train",), "val"), (("val", "test"), "train")])
def test_evaluate__nothing_to_learn_from_or_to_score_is_refused(
    tmp_path: Path, names: tuple[str, ...], absent: str
) -> None:
    write_images(tmp_path, dict.fromkeys(names, 5))
    settings = settings_of(tmp_path, "data.labels=[Bright]", f"data.root={tmp_path / 'images'}")
    with pytest.raises(ManifestError, match=f"no {absent}.csv"):
        evaluate(settings, "random", tmp_path / "scores")


def test_evaluate__random_is_the_untrained_control_itself(splits: dict[str, Split], tmp_path: Path) -> None:
    found = evaluate(settings_of(tmp_path), "random", tmp_path / "scores")
    assert {record.encoder for record in found.scores} == {"untrained", "pixels"}
    assert {(d.encoder, d.control) for d in found.differences} == {("untrained", "pixels")}


@pytest.mark.parametrize(
    ("override", "message"), [("data.labels=[]", "names no label"), ("data.labels=[macro]", "rename that column")]
)
def test_evaluate__labels_that_cannot_be_scored_are_refused(
    splits: Any, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate(settings_of(tmp_path, override), "random", tmp_path / "scores")


def test_evaluate__a_file_in_place_of_the_folder_is_refused(splits: Any, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("")
    with pytest.raises(SettingsError, match="cannot be the folder"):
        evaluate(settings_of(tmp_path), "random", tmp_path / "scores")


def test_evaluate__table_fits_and_same_seed_same_bytes(splits: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "evaluate.label_fraction=0.2", "evaluate.label_draws=2")
    for folder in ("first", "second"):
        found = evaluate(settings, "run-folder", tmp_path / folder)
    assert max(len(line) for line in found.table.splitlines()) <= 120
    assert [verdict.label for verdict in found.verdict] == ["Easy", "Hard"]
    assert " ".join(found.table.split()).endswith(" ".join(map(str, found.verdict)))
    assert Evaluation.load(tmp_path / "second").verdict == found.verdict
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.fixture
def real(tmp_path: Path) -> Callable[..., RunSettings]:
    write_images(tmp_path, {"train": 60, "val": 30, "test": 40})
    keys = [*SMALL, "model.backbone=test_resnet", f"data.root={tmp_path / 'images'}"]
    return lambda *more: settings_of(tmp_path, *keys, *more)


def test_evaluate__real_images_and_a_real_encoder(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    """A weights file that holds the untrained encoder scores exactly as the untrained control does."""
    settings = real()
    backbone = load_encoder("random", settings).module
    save_file(backbone.net.state_dict(), tmp_path / "encoder.safetensors")
    said: list[str] = []
    found = evaluate(settings, str(tmp_path / "encoder.safetensors"), tmp_path / "scores", said.append)
    for method in ("linear", "knn"):
        run, untrained = (record_of(found.scores, "Bright", "test", method, name) for name in ("run", "untrained"))
        assert run.auroc == untrained.auroc
        assert (run.n, run.n_patients) == (36, 20)
        difference = record_of(found.differences, "Bright", "test", method, "run", "untrained")
        assert (difference.low, difference.high, difference.excludes_zero) == (0, 0, False)
    assert record_of(found.scores, "Bright", "test", "linear", "pixels").auroc > 0.9
    assert "features of test: 40 images" in said
    for name in FILES:
        text = (tmp_path / "scores" / name).read_text()
        assert not any(word in text for word in ("secret", "confidential", str(tmp_path), "safetensors"))


def test_evaluate__the_weights_given_are_the_ones_scored(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    """An encoder of zeros gives constant features, and only it is flagged."""
    settings = real()
    backbone = load_encoder("random", settings).module
    dead = {name: torch.zeros_like(value) for name, value in backbone.net.state_dict().items()}
    save_file(dead, tmp_path / "dead.safetensors")
    found = evaluate(settings, str(tmp_path / "dead.safetensors"), tmp_path / "scores")
    assert record_of(found.scores, "Bright", "test", "linear", "run").flag == "all scores are equal"
    assert record_of(found.scores, "Bright", "test", "linear", "untrained").flag is None


def test_evaluate__mirror_makes_encoders_blind_to_sides_and_leaves_pixels_alone(
    real: Callable[..., RunSettings], tmp_path: Path
) -> None:
    found = {
        mirror: evaluate(real(f"evaluate.mirror={mirror}"), "random", tmp_path / mirror) for mirror in ("false", "true")
    }
    scores = {
        (mirror, encoder): record_of(evaluation.scores, "Bright", "test", "linear", encoder).auroc
        for mirror, evaluation in found.items()
        for encoder in ("untrained", "pixels")
    }
    assert scores["true", "pixels"] == scores["false", "pixels"]
    assert "images and their mirror images" in found["true"].table
    assert "mirror" not in found["false"].table


def test_evaluate__test_is_not_scored_unless_asked(splits: Any, tmp_path: Path) -> None:
    found = module.evaluate(settings_of(tmp_path), {"run": "run-folder"}, tmp_path / "scores")
    assert {record.split for record in found.scores} == {"val"}
    assert "the test set was not evaluated" in found.table
    assert not (tmp_path / "scores/ledger.jsonl").exists()
    assert "test" not in set(pd.read_csv(tmp_path / "scores/predictions.csv")["split"])


def test_evaluate__every_test_evaluation_is_recorded_with_its_scores(splits: Any, tmp_path: Path) -> None:
    for count in (1, 2):
        found = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
        assert f"test evaluation {count}, recorded in ledger.jsonl" in found.table
    noted = read_ledger(tmp_path / "scores/ledger.jsonl")
    assert [entry.command for entry in noted] == ["evaluate", "evaluate"]
    assert noted[0].auroc == {
        label: record_of(found.scores, label, "test", "linear", "run").auroc for label in ("Easy", "Hard")
    }
    assert (noted[0].rows, noted[0].encoders) == (160, ("run", "untrained", "pixels"))


def test_evaluate__a_test_evaluation_that_cannot_be_recorded_is_not_shown(splits: Any, tmp_path: Path) -> None:
    (tmp_path / "scores/ledger.jsonl").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be recorded"):
        evaluate(settings_of(tmp_path), "run-folder", tmp_path / "scores")
    assert not (tmp_path / "scores/scores.json").exists()


def test_evaluate__others_are_compared_with_the_first(
    splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRENGTHS, "imagenet", 1.1)
    encoders = {"run": "run-folder", "imagenet": "weights.safetensors"}
    found = module.evaluate(settings_of(tmp_path), encoders, tmp_path / "scores", test=True)
    compared = {(d.encoder, d.control) for d in found.differences}
    assert compared == {("run", "imagenet"), ("run", "untrained"), ("run", "pixels")}
    assert "imagenet" in found.table
    for record in found.differences:
        assert 0 < record.p <= record.p_holm <= 1
    with pytest.raises(SettingsError, match="name of a control"):
        module.evaluate(settings_of(tmp_path), {"pixels": "weights.safetensors"}, tmp_path / "scores")


def test_evaluate__delong_only_where_every_patient_has_one_row(
    splits: dict[str, Split], scored: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    assert record_of(scored[0].scores, "Easy", "test", "linear", "run").delong_low is None
    splits["test"].patients[:] = 5000 + np.arange(160)
    single = evaluate(settings_of(tmp_path), "run-folder", tmp_path / "single")
    record = record_of(single.scores, "Easy", "test", "linear", "run")
    assert record.delong_low == pytest.approx(record.auroc_low, abs=0.03)
    assert record_of(single.differences, "Easy", "test", "linear", "run", "pixels").delong_p < 0.05


def test_evaluate__thresholds_and_calibration_come_from_validation(scored: tuple[Evaluation, Path]) -> None:
    found, folder = scored
    table = pd.read_csv(folder / "predictions.csv")
    mine = table[(table["label"] == "Easy") & (table["method"] == "linear") & (table["encoder"] == "run")]
    val, test = (mine[mine["split"] == split] for split in ("val", "test"))
    points = [r for r in found.operating_points if (r.label, r.encoder, r.method) == ("Easy", "run", "linear")]
    assert [(r.split, r.specificity_wanted) for r in points] == [
        (split, wanted) for split in ("val", "test") for wanted in (0.9, 0.95)
    ]
    for record in points:
        negatives = val.loc[val["target"] == 0, "score"]
        assert (negatives < record.threshold).mean() >= record.specificity_wanted
    on_test = next(r for r in points if r.split == "test")
    said = test["score"] >= on_test.threshold - 1e-7
    assert (on_test.tp, on_test.fp) == (
        (said & (test["target"] == 1)).sum(),
        (said & (test["target"] == 0)).sum(),
    )
    calibration = next(r for r in found.calibration if (r.label, r.encoder, r.split) == ("Easy", "run", "val"))
    assert calibration.after.slope == pytest.approx(1, abs=0.1)  # fitted there, but for Platt's prior
    assert calibration.before.n == 150


def test_evaluate__subgroups_are_those_asked_for(
    splits: dict[str, Split], scored: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, "evaluate.subgroups=[Side]", "evaluate.least_patients=10")
    found = evaluate(settings, "run-folder", tmp_path / "scores")
    mine = [
        r for r in found.subgroups
        if (r.label, r.split, r.encoder, r.method) == ("Easy", "test", "run", "linear")
    ]  # fmt: skip
    assert {record.group for record in mine} == {"L", "R"}
    assert sum(record.n for record in mine) == 160
    assert not scored[0].subgroups


@pytest.mark.parametrize("stages", [1, 2])
def test_evaluate__the_probe_is_kept_as_a_classifier_that_scores_the_same(
    real: Callable[..., RunSettings], tmp_path: Path, stages: int
) -> None:
    settings = real("evaluate.mirror=true", f"evaluate.stages={stages}")
    evaluate(settings, "random", tmp_path / "scores")
    classifier = load_classifier(tmp_path / "scores/classifier")
    table = pd.read_csv(tmp_path / "scores/predictions.csv")
    mine = table[(table["split"] == "test") & (table["method"] == "linear") & (table["encoder"] == "untrained")]
    split = load_manifest(settings.data, ("test",))["test"]
    scores = classifier.score(split, settings)[:, 0]
    by_row = dict(zip(split.rows.tolist(), scores, strict=True))
    np.testing.assert_allclose([by_row[row] for row in mine["row"]], mine["score"], rtol=1e-3, atol=1e-3)
    assert (classifier.facts.trained, classifier.facts.stages) == ("linear probe", stages)
    assert classifier.facts.calibration["Bright"].kind == "platt"
    assert list(classifier.operating_points["Bright"]) == [0.9, 0.95]
    evaluate(real("evaluate.label_fraction=0.5"), "random", tmp_path / "scores")
    assert not (tmp_path / "scores/classifier").exists()  # it would not be that of the scores now beside it


def test_evaluate__the_first_encoder_is_the_primary_one_whatever_its_name(splits: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STRENGTHS, "mine", 1.5)
        encoders = {"mine": "one.safetensors", "run": "two.safetensors"}
        found = module.evaluate(settings_of(tmp_path), encoders, tmp_path / "scores")
    assert found.primary == Evaluation.load(tmp_path / "scores").primary == "mine"
    assert {score.encoder for score in found.scores if score.primary} == {"mine"}
    assert {d.encoder for d in found.differences} == {"mine"}


def test_evaluate__without_a_folder_nothing_is_written_but_the_ledger(splits: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = module.evaluate(settings, {"run": "weights.safetensors"})
    assert found.folder is None
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SettingsError, match="recorded in the ledger"):
        module.evaluate(settings, {"run": "weights.safetensors"}, test=True)
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "config.yaml").touch()  # makes it a run folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "find_pretraining", lambda _: Pretraining())
        found = module.evaluate(settings, {"run": str(tmp_path / "cxr")}, test=True)
    assert "test evaluation 1, recorded in ledger.jsonl" in found.table
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path not in before] == [
        "cxr", "config.yaml", "ledger.jsonl",
    ]  # fmt: skip


# ---- classes and numeric targets ----


def test_evaluate__classes_take_the_place_of_labels_and_targets_join_them(
    real: Callable[..., RunSettings], tmp_path: Path
) -> None:
    """Two classes are a label; a target of 0 and 1 is one too."""
    binary = evaluate(real(), "random", tmp_path / "binary")
    settings = real("data.labels=[Bright, PatientID]", "evaluate.classes=Bright", "evaluate.targets=[Bright]")
    found = evaluate(settings, "random", tmp_path / "scores")
    assert list(dict.fromkeys(score.label for score in found.scores)) == ["0", "1", "macro"]
    for method in ("linear", "knn"):
        before = record_of(binary.scores, "Bright", "test", method, "pixels")
        score = record_of(found.scores, "1", "test", method, "pixels")
        assert score.auroc == pytest.approx(before.auroc, abs=0.01)
        assert (score.n, score.n_positive, score.class_column) == (before.n, before.n_positive, "Bright")
    assert "label_policy" not in json.loads((tmp_path / "scores/scores.json").read_text())[0]
    assert "class_column" not in json.loads((tmp_path / "binary/scores.json").read_text())[0]
    assert {(s.label, s.method) for s in found.classes} == {("Bright", "linear"), ("Bright", "knn")}
    assert {(s.label, s.encoder) for s in found.regression} == {
        ("Bright", name) for name in ("untrained", "pixels", "training mean")
    }
    for text in ("a class of the column Bright", "mean of 2 of 2 classes", "top-1", "Bright, R2", "training mean"):
        assert text in found.table
    assert max(map(len, found.table.splitlines())) <= 120
    (entry,) = read_ledger(tmp_path / "scores/ledger.jsonl")
    assert set(entry.auroc) == {"0", "1"}
    assert entry.r2 == {"Bright": record_of(found.regression, "Bright", "test", "ridge", "untrained").r2}
    again = Evaluation.load(tmp_path / "scores")
    for name in ("scores", "classes", "regression", "regression_differences"):
        assert getattr(again, name) == getattr(found, name)
    ridge = again.predictions[again.predictions["method"] == "ridge"]
    assert set(ridge["encoder"]) == {"untrained", "pixels", "training mean"}
    assert set(ridge["target"]) == {0, 1}
    for file in (tmp_path / "scores").glob("*.*"):
        assert not any(word in file.read_text() for word in ("secret", "confidential", str(tmp_path)))
    evaluate(real(), "random", tmp_path / "scores")  # labels again: the other files do not match these scores
    assert {file.name for file in (tmp_path / "scores").glob("*.json")} == {
        file.name for file in (tmp_path / "binary").glob("*.json")
    }


def test_evaluate__the_probe_of_classes_is_kept_as_a_classifier_that_scores_the_same(
    real: Callable[..., RunSettings], tmp_path: Path
) -> None:
    settings = real("evaluate.classes=Bright")
    evaluate(settings, "random", tmp_path / "scores")
    classifier = load_classifier(tmp_path / "scores/classifier")
    assert (classifier.labels, classifier.facts.exclusive) == (("0", "1"), True)
    table = pd.read_csv(tmp_path / "scores/predictions.csv", dtype={"label": str})
    split = load_manifest(settings.data, ("test",))["test"]
    scores = pd.DataFrame(classifier.score(split, settings), index=split.rows, columns=classifier.labels)
    chosen = table[(table["split"] == "test") & (table["method"] == "linear") & (table["encoder"] == "untrained")]
    for label, rows in chosen.groupby("label"):
        np.testing.assert_allclose(scores.loc[rows["row"], label], rows["score"], rtol=1e-3, atol=1e-3)


def test_evaluate__targets_alone(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    found = evaluate(real("data.labels={}", "evaluate.targets=[Bright]"), "random", tmp_path / "scores")
    assert (found.scores, found.classes, found.primary) == ((), (), "untrained")
    assert record_of(found.regression, "Bright", "test", "ridge", "pixels").r2 > 0.2
    assert not (tmp_path / "scores/classifier").exists()
    assert found.summary().index.tolist()[-2:] == [("test", "Bright R2"), ("test", "Bright mean absolute error")]
    assert "only test scores are unbiased" in found.table
    assert repr(found) == "Evaluation(primary='untrained', labels=['Bright'], splits=['val', 'test'])"
