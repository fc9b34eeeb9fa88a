from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.record_files import read_records, write_records
from medmoco.evaluation.scoring.trained_records import SegmentationDifference, SegmentationScore
from medmoco.segmentation.scores.metrics import OF_VOLUMES, Measures
from medmoco.segmentation.scores.records import (
    CASES,
    FACTS,
    CaseFacts,
    CaseScore,
    CaseSplit,
    read_cases,
    write_cases,
)
from medmoco.segmentation.scores.scoring import differences_of, records_of, score

ROWS = {"val": np.array([2, 5]), "test": np.array([3])}
FACTS_OF = CaseFacts(
    classes=("Liver", "Tumour"),
    tolerance=0.1 + 0.2,
    length_unit="mm",
    volume_unit="mL",
    masks_sha256="ab",
    splits={"val": CaseSplit(manifest_sha256="1", images=2), "test": CaseSplit(manifest_sha256="2", images=1)},
    encoder={"kind": "run", "step": 10},
)
NAN = float("nan")


def measures_of(images: int) -> Measures:
    rng = np.random.default_rng(images)
    measures = Measures(*(rng.random((images, 2)) / 3 for _ in range(5)))
    for column in measures:
        column[0, 1] = NAN
    return measures


def written(folder: Path) -> dict[str, Measures]:
    measures = {"val": measures_of(2), "test": measures_of(1)}
    write_cases(folder, measures, ROWS, FACTS_OF)
    return measures


def test_cases__are_read_as_they_were_written(tmp_path: Path) -> None:
    measures = written(tmp_path)
    again, kind = read_cases(tmp_path, FACTS_OF, ROWS)
    assert kind == "run"
    for split, own in measures.items():
        for column, found in zip(own, again[split], strict=True):
            np.testing.assert_array_equal(column, found)  # to the last digit
    lines = (tmp_path / CASES).read_text().splitlines()
    assert lines[0] == ",".join(CaseScore.model_fields) == "split,row,label,dice,surface_dice,hd95,volume,truth"
    assert lines[1].startswith("val,2,Liver,0.")
    assert lines[2] == "val,2,Tumour,,,,,"
    assert len(lines) == 1 + 3 * 2


def test_cases__in_another_order_are_of_the_same_images(tmp_path: Path) -> None:
    measures = written(tmp_path)
    head, *lines = (tmp_path / CASES).read_text().splitlines()
    (tmp_path / CASES).write_text("\n".join([head, *lines[::-1]]) + "\n")
    own = FACTS_OF.model_copy(update={"splits": {"val": FACTS_OF.splits["val"]}, "encoder": {"kind": "random"}})
    again, _ = read_cases(tmp_path, own, {"val": ROWS["val"][::-1]})
    assert list(again) == ["val"]
    np.testing.assert_array_equal(again["val"].dice, measures["val"].dice[::-1])


def test_read_cases__refuses_other_images_masks_classes_tolerances_and_units(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder of a finished segmentation run") as error:
        read_cases(tmp_path, FACTS_OF, ROWS)
    assert str(tmp_path) not in str(error.value)
    written(tmp_path)
    for change, named in (
        ({"classes": ("Tumour", "Liver")}, "classes"),
        ({"tolerance": 0.3}, "tolerance"),
        ({"length_unit": "pixels", "volume_unit": "pixels"}, "units"),
        ({"masks_sha256": "cd", "tolerance": 2.0}, "masks and tolerance"),
        ({"splits": {"val": CaseSplit(manifest_sha256="9", images=2)}}, "images"),
        ({"splits": {"train": CaseSplit(manifest_sha256="1", images=2)}}, "images"),
    ):
        with pytest.raises(SettingsError, match=f"was scored with other {named} than this one") as refused:
            read_cases(tmp_path, FACTS_OF.model_copy(update=change), ROWS)
        assert str(tmp_path) not in str(refused.value)
        assert len(str(refused.value).splitlines()) <= 5
    with pytest.raises(SettingsError, match="other images"):  # as many, by another condition
        read_cases(tmp_path, FACTS_OF, ROWS | {"val": np.array([2, 6])})


def _without_last(text: str) -> str:
    return "\n".join(text.splitlines()[:-1]) + "\n"


@pytest.mark.parametrize(
    "damage",
    [
        _without_last,
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace("Liver", "Lever"),
        lambda text: text.replace("val,5,Liver", "val,5,Tumour"),
        lambda text: text.replace("val,2,Tumour,,", "val,2,Tumour,x,"),
        lambda text: text.replace("val,2,", "val,,"),
        lambda text: text.replace("hd95", "hd"),
        lambda text: "",
    ],
)
def test_read_cases__refuses_a_damaged_table(tmp_path: Path, damage: Callable[[str], str]) -> None:
    written(tmp_path)
    (tmp_path / CASES).write_text(damage((tmp_path / CASES).read_text()))
    with pytest.raises(CheckpointError, match=r"cases\.csv is damaged; run segment there again"):
        read_cases(tmp_path, FACTS_OF, ROWS)


def test_read_cases__refuses_damaged_facts(tmp_path: Path) -> None:
    written(tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({key: facts[key] for key in facts if key != "tolerance"}))
    with pytest.raises(CheckpointError, match=r"cases\.json is damaged: tolerance"):
        read_cases(tmp_path, FACTS_OF, ROWS)


def test_scores_and_differences__are_read_as_they_were_written(tmp_path: Path) -> None:
    measures, patients = measures_of(4), np.arange(4)
    scores = score(measures, patients, FACTS_OF.classes, draws=20, seed=0)
    records = records_of(
        "val", measures, patients, FACTS_OF.classes, scores, units=OF_VOLUMES, tolerance=1.0, encoder="run"
    )
    names = ("run", "random")
    differences = differences_of(
        "val", (measures, measures), patients, FACTS_OF.classes, names, units=OF_VOLUMES, draws=20, seed=0
    )
    write_records(tmp_path / "scores.json", records)
    write_records(tmp_path / "differences.json", differences)
    assert list(read_records(tmp_path / "scores.json", SegmentationScore)) == records
    assert list(read_records(tmp_path / "differences.json", SegmentationDifference)) == differences


def test_case_scores__every_field_has_a_description_and_a_unit() -> None:
    for name, field in CaseScore.model_json_schema()["properties"].items():
        assert re.search(r'"description": "[^"]{5}', json.dumps(field)), name
        assert re.search(r'"unit": "[^"]+"', json.dumps(field)), name
