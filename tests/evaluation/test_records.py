"""Records describe every field, and name the primary encoder."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest

from medmoco.evaluation import records as module
from medmoco.evaluation.records import Part, Score, primary_of

CLASSES = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, Part)]


def score(encoder: str = "mine", **more: Any) -> Score:
    key = {"label": "Mass", "split": "test", "method": "linear", "encoder": encoder}
    numbers = {"auroc": 1 / 3, "auroc_low": 0.1, "auroc_high": None, "average_precision": 0.5}
    return Score.model_validate({**key, **numbers, "n": 9, "n_positive": 3, "n_patients": 8, **more})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_records__every_field_has_a_description_and_a_unit(cls: type[Part]) -> None:
    schema = cls.model_json_schema()
    for name, field in schema.get("properties", {}).items():
        assert re.search(r'"description": "[^"]{5}', json.dumps(field)), name
        assert '"unit"' in json.dumps(field) or "$ref" in json.dumps(field), name
    assert cls.model_config["frozen"]


def test_primary_of__the_marked_one_else_the_first_that_is_no_control() -> None:
    old = [score("untrained"), score("mine"), score("run"), score("pixels")]
    assert primary_of(old) == "mine"
    assert primary_of([*old, score("other", primary=True)]) == "other"
    assert primary_of([score("untrained"), score("pixels")]) == "untrained"  # random weights were evaluated
    assert primary_of([]) is None
