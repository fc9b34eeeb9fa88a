from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco import config
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.probes import draw_patients
from medmoco.evaluation.supervised.training_labels import choose_training_labels, targets_of

# Patient, two labels of which the second is often missing, and a class.
ROWS = [(n // 2, n % 2, "" if n % 3 else int(n % 6 == 0), ("cat", "dog", "")[n % 3]) for n in range(60)]


def load(folder: Path, *overrides: str, rows: list[tuple[object, ...]] = ROWS) -> tuple[config.RunSettings, Split]:
    lines = ["Path,PatientID,A,B,Class", *(f"{n}.png,{','.join(map(str, row))}" for n, row in enumerate(rows))]
    (folder / "train.csv").write_text("\n".join(lines))
    base = ["out=run", f"data.manifest={folder}", "data.root=r", "data.labels=[A, B]", "finetune.least_steps=1"]
    settings = config.load(None, [*base, "finetune.global_batch_size=8", *overrides])
    return settings, load_manifest(settings.data, ("train",))["train"]


def test_choose_training_labels__takes_all_labels_and_masks_missing_ones(tmp_path: Path) -> None:
    settings, train = load(tmp_path)
    labels = choose_training_labels(train, settings)
    np.testing.assert_array_equal(labels.targets, train.labels)
    assert (labels.names, labels.exclusive, labels.repeats) == (("A", "B"), False, 1)
    assert labels.rows == {"A": 60, "B": 20}
    assert labels.patients == {"A": 30, "B": 20}


@pytest.mark.parametrize(("fraction", "draw"), [(0.1, 0), (0.4, 3)])
def test_choose_training_labels__draws_as_evaluation_does_and_leaves_the_rest_out(
    tmp_path: Path, fraction: float, draw: int
) -> None:
    settings, train = load(tmp_path, f"finetune.label_fraction={fraction}", f"finetune.label_draw={draw}", "seed=5")
    labels = choose_training_labels(train, settings)
    wanted = np.stack([
        draw_patients(train.patients, train.labels[:, n].astype(float), fraction=fraction, seed=5, draw=draw)
        for n in range(2)
    ], 1)  # fmt: skip
    known = ~np.isnan(wanted).all(1)
    np.testing.assert_array_equal(labels.train.rows, train.rows[known])
    np.testing.assert_array_equal(labels.targets, wanted[known])
    assert 0 < len(labels.train) < 60


def test_choose_training_labels__repeats_few_rows(tmp_path: Path) -> None:
    settings, train = load(tmp_path, "finetune.least_steps=20")
    labels = choose_training_labels(train, settings)
    assert labels.repeats == 3  # 20 steps of 8 are 160, twice 60 are less
    np.testing.assert_array_equal(labels.train.rows, np.tile(train.rows, 3))
    np.testing.assert_array_equal(labels.targets, np.tile(train.labels, (3, 1)))
    assert labels.rows == {"A": 60, "B": 20}


def test_choose_training_labels__classes_are_those_of_the_column(tmp_path: Path) -> None:
    settings, train = load(tmp_path, "finetune.classes=Class")
    labels = choose_training_labels(train, settings)
    assert (labels.names, labels.exclusive) == (("cat", "dog"), True)
    assert labels.rows == {"cat": 20, "dog": 20}
    assert [("cat", "dog")[code] for code in labels.targets] == [row[3] for row in ROWS if row[3]]
    one_hot = targets_of(train, labels)
    for row, target in zip(ROWS, one_hot, strict=True):
        if row[3]:
            assert target.tolist() == [row[3] == "cat", row[3] == "dog"]
        else:
            assert np.isnan(target).all()


def test_choose_training_labels__few_labels_still_hold_every_class(tmp_path: Path) -> None:
    settings, train = load(tmp_path, "finetune.classes=Class", "finetune.label_fraction=0.01")
    labels = choose_training_labels(train, settings)
    assert set(labels.targets.tolist()) == {0, 1}
    assert len(labels.targets) < 20


def test_targets_of__refuses_a_class_without_training_rows(tmp_path: Path) -> None:
    settings, train = load(tmp_path, "finetune.classes=Class")
    labels = choose_training_labels(train, settings)
    _, other = load(tmp_path, rows=[*ROWS[:5], (9, 1, 1, "bird")])
    with pytest.raises(ManifestError, match=r"train\.csv row 7: train has no rows of its class in 'Class'"):
        targets_of(other, labels)


@pytest.mark.parametrize(
    ("overrides", "error", "expected"),
    [
        (["data.labels={}"], SettingsError, "names no label to learn"),
        (["finetune.classes=Breed"], SettingsError, "has no column 'Breed'"),
        (["finetune.classes=A"], ManifestError, "names 1 classes"),
        (["finetune.classes=PatientID"], SettingsError, "identifies patients or images; name another"),
        (["data.labels=[A]"], ManifestError, "the label 'A' cannot be learned, it is undefined .no positives"),
    ],
)
def test_choose_training_labels__refuses_what_cannot_be_learned(
    tmp_path: Path, overrides: list[str], error: type[Exception], expected: str
) -> None:
    settings, train = load(tmp_path, *overrides, rows=[(1, 0, "", "cat"), (1, 0, "", "dog")])
    with pytest.raises(error, match=expected):
        choose_training_labels(train, settings)
