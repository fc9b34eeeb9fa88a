from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import Call


@pytest.mark.slow
def test_evaluate__real_films_give_the_known_score_of_raw_pixels(call: Call, shared: Path, tmp_path: Path) -> None:
    """Viral versus bacterial from 32 x 32 pixels is known to score 0.835 on these 437 test images."""
    data = [f"data.manifest={shared}/data/cxr_dev", f"data.root={shared}/data/cxr_dev/{{split}}", "data.labels=[Viral]"]
    out = tmp_path / "scores"
    call("evaluate", "--config", "configs/cxr.yaml", "--encoder", "random", "--out", out,
         "--test", "evaluate.where=Pneumonia == 1", *data)  # fmt: skip
    records = json.loads((out / "scores.json").read_text())
    found = {(r["encoder"], r["split"]): r for r in records if r["method"] == "linear" and r["label"] == "Viral"}
    pixels = found["pixels", "test"]
    assert (pixels["n"], pixels["n_positive"], pixels["n_patients"]) == (437, 141, 163)
    assert pixels["auroc"] == pytest.approx(0.835, abs=0.01)
    assert pixels["auroc_low"] < pixels["auroc"] < pixels["auroc_high"]
    assert found["untrained", "test"]["auroc"] > 0.7
