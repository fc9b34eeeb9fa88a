"""Records of classes and numeric targets describe every field, and are read as they were written."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from medmoco.evaluation import target_records as module
from medmoco.evaluation.record_files import read_records, write_records
from medmoco.evaluation.records import Part
from medmoco.evaluation.target_records import ClassReport, ClassScore, RegressionScore

CLASSES = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, Part)]
KEY: dict[str, Any] = {"split": "test", "method": "linear", "encoder": "run", "n": 4, "n_patients": 3}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_target_records__every_field_has_a_description_and_a_unit(cls: type[Part]) -> None:
    for name, field in cls.model_json_schema().get("properties", {}).items():
        assert re.search(r'"description": "[^"]{5}', json.dumps(field)), name
        assert '"unit"' in json.dumps(field) or "$ref" in json.dumps(field), name


def test_target_records__are_read_as_they_were_written(tmp_path: Path) -> None:
    report = ClassReport(name="cat", precision=None, recall=0.5, f1=0.0, support=2)
    ends = dict.fromkeys(("top1_low", "top1_high", "balanced_accuracy_low", "balanced_accuracy_high"))
    score = ClassScore(
        **KEY, **ends, label="Class", top1=0.5, balanced_accuracy=0.5, classes=(report,), confusion=((1.5, 0.5),)
    )
    write_records(tmp_path / "classes.json", [score])
    assert read_records(tmp_path / "classes.json", ClassScore) == (score,)


def test_target_records__fraction_is_1_unless_recorded() -> None:
    ends = dict.fromkeys(("r2", "r2_low", "r2_high", "mae", "mae_low", "mae_high"))
    score = RegressionScore(**KEY, **ends, label="Age")
    assert (score.fraction, score.model_copy(update={"label_fraction": 0.1}).fraction) == (1.0, 0.1)
