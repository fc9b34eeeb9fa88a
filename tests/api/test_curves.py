"""`medmoco.curve` joins the label efficiency of labels and of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import medmoco
from medmoco.segmentation import curve as module
from tests.helpers.made_segmentation import make_segmentation_curve


@pytest.mark.slow
@pytest.mark.parametrize("has_labels", [True, False])
def test_curve__of_masks_is_saved_with_that_of_labels(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_labels: bool
) -> None:
    made = make_segmentation_curve(tmp_path / "made")

    def replaced(*args: Any, **options: Any) -> medmoco.Curve:
        args[2].mkdir(exist_ok=True)
        found = module.with_labels(made, options["labels"])
        found.save(args[2])
        return found

    monkeypatch.setattr(module, "segmentation_curve", replaced)
    config = (
        medmoco.load_config("config.yaml") if has_labels else medmoco.load_config("config.yaml", data={"labels": []})
    )
    found = medmoco.curve(config, "runs/phantoms", tmp_path / "curve", draws=1, segment=True)
    again = medmoco.Curve.load(tmp_path / "curve")
    assert again.segmentation == found.segmentation == made.segmentation
    assert again.table == found.table
    assert found.table.endswith(made.table)
    assert bool(again.points) is has_labels
    assert (tmp_path / "curve" / "dice_val_macro.svg").is_file()
