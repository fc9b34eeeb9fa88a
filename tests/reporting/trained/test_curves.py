from __future__ import annotations

import shutil
from pathlib import Path

from medmoco.reporting.blocks import Fold, Plot
from medmoco.reporting.curves import curve_section
from medmoco.reporting.runs import read_run
from medmoco.reporting.trained.curves import segmentation_curves
from tests.helpers.made_segmentation import make_segmentation_curve


def test_segmentation_curves__show_dice_surface_dice_and_differences(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    make_segmentation_curve(folder / "curve")
    run = read_run(folder)
    parts = segmentation_curves(run)
    assert [*parts] == ["Segmentation: Mean over classes", "Segmentation: anterior", "Segmentation: posterior"]
    dice, surface, fold = parts["Segmentation: posterior"]
    assert isinstance(dice, Plot)
    assert isinstance(surface, Plot)
    assert isinstance(fold, Fold)
    assert dice.caption.startswith(
        "Dice by fraction of patients with masks, posterior on val (23 images of 12 patients), run;"
    )
    assert dice.table.rows[0][0] == "10 %, run"
    assert surface.table.head[1] == "surface Dice at 2 mm (95 % interval)"
    assert [row[0] for row in fold.blocks[0].rows][:2] == ["10 %, from scratch"] * 2  # type: ignore[union-attr]
    titles = [part.title for part in curve_section([run]).sections]
    assert titles[-2:] == ["Segmentation: anterior", "Segmentation: posterior"]
    assert segmentation_curves(read_run(run_folder)) == {}
