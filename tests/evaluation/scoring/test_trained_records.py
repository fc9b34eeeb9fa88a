from __future__ import annotations

import inspect
import json
import re

import pytest

from medmoco.evaluation.records import Part
from medmoco.evaluation.scoring import trained_records as module

CLASSES = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_records__every_field_has_a_description_and_a_unit(cls: type[Part]) -> None:
    for name, field in cls.model_json_schema()["properties"].items():
        assert re.search(r'"description": "[^"]{5}', json.dumps(field)), name
        assert re.search(r'"unit": "[^"]+"', json.dumps(field)), name
    assert cls.model_config["frozen"]
