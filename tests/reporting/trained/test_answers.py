from __future__ import annotations

from pathlib import Path

from medmoco.reporting.runs import read_run
from medmoco.reporting.summary import answers, summary
from medmoco.reporting.trained.answers import segmentation_answers
from tests.helpers.made_segmentation import make_segmentation_curve, make_segmentation_run


def test_answers__of_a_run_are_its_difference_from_the_other_run(run_folder: Path, tmp_path: Path) -> None:
    run = read_run(make_segmentation_run(run_folder, tmp_path / "masks"))
    (found,) = segmentation_answers([run])
    assert found.title == "The pretrained encoder gains over training from scratch"
    assert found.kind == "gain"
    assert found.metric == "Dice"
    assert found.text.startswith("Mean over classes on the test set, with all masks: the Dice is 0.")
    assert answers([run]) == [found]
    assert not list(segmentation_answers([read_run(run_folder)]))


def test_answers__of_a_curve_say_that_the_gain_is_only_with_few_masks(bare_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "environment.json"):
        (folder / name).write_bytes((bare_folder / name).read_bytes())
    make_segmentation_curve(folder / "curve")
    run = read_run(folder)
    (found,) = segmentation_answers([run])
    assert found.title == "The pretrained encoder gains over training from scratch"
    assert "with the masks of 2 patients (10 %): the pretrained encoder has a Dice of" in found.text
    assert found.text.endswith("the gain is only with few masks.")
    assert summary([run])
