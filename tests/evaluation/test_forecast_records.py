"""Records of forecasts describe every field, and are read as they were written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.record_files import read_records, write_records
from medmoco.evaluation.records import Part


@pytest.mark.parametrize("cls", [Forecast, LabelsNeeded], ids=lambda cls: cls.__name__)
def test_forecast_records__every_field_has_a_description_and_a_unit(cls: type[Part]) -> None:
    for name, field in cls.model_json_schema().get("properties", {}).items():
        assert re.search(r'"description": "[^"]{5}', json.dumps(field)), name
        assert '"unit"' in json.dumps(field), name


def test_forecast_records__are_read_as_they_were_written(tmp_path: Path) -> None:
    record = Forecast(
        label="A", split="test", method="linear", encoder="run", auroc=None, auroc_low=None, auroc_high=None,
        undefined="the score does not rise with more labels", fraction=5.0, times=5.0, n_train_patients=12.5,
    )  # fmt: skip
    write_records(tmp_path / "forecast.json", [record])
    assert read_records(tmp_path / "forecast.json", Forecast) == (record,)
