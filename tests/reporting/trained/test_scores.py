from __future__ import annotations

from pathlib import Path

from medmoco.evaluation.record_files import write_record, write_records
from medmoco.evaluation.scoring.trained_records import DetectionScore
from medmoco.reporting.blocks import Fold, Plot, Table, Text
from medmoco.reporting.report import write_report
from medmoco.reporting.runs import read_run
from medmoco.reporting.trained.scores import trained_section
from medmoco.segmentation.scores.records import CaseFacts
from tests.helpers.made_segmentation import make_segmentation_run


def test_trained_section__shows_each_class_with_the_difference(run_folder: Path, tmp_path: Path) -> None:
    run = read_run(make_segmentation_run(run_folder, tmp_path / "masks"))
    section = trained_section([run])
    assert [part.title for part in section.sections] == [
        "anterior, test", "posterior, test", "Mean over classes, test", "Split val",
    ]  # fmt: skip
    table, found = section.sections[1].blocks
    assert isinstance(table, Table)
    assert table.caption == "posterior on test: 23 images of 12 patients; 1 image without it does not count"
    assert found == Text(
        "pretrained encoder: found in 22 of 23 images that show it, and in 0 of 1 that do not; from scratch: found in"
        " 22 of 23 images that show it, and in 0 of 1 that do not.",
        "note",
    )
    assert [row[0] for row in table.rows] == [
        "pretrained encoder", "from scratch", "pretrained encoder minus from scratch",
    ]  # fmt: skip
    assert table.head[1:3] == ["Dice", "surface Dice at 2 mm"]
    assert table.rows[2][1].startswith("+0.")
    (mean,) = section.sections[2].blocks
    assert isinstance(mean, Table)
    assert mean.head[-1] == "HD95, mm"  # volumes have no mean
    (fold,) = section.sections[3].blocks
    assert isinstance(fold, Fold)
    assert fold.summary == "Scores on val, which also chose the epoch"
    assert any(isinstance(block, Plot) for block in section.blocks)
    words = [block.text for block in section.blocks if isinstance(block, Text)]
    assert "masks: the validation set also chose the epoch, so only scores on test are unbiased." in words


def test_trained_section__without_test_the_scores_are_optimistic(run_folder: Path, tmp_path: Path) -> None:
    run = read_run(make_segmentation_run(run_folder, tmp_path / "masks", splits=("val",)))
    warnings = [b.text for b in trained_section([run]).blocks if isinstance(b, Text) and b.kind == "warning"]
    assert len(warnings) == 1
    assert "only the validation set was scored" in warnings[0]
    assert not trained_section([read_run(run_folder)]).sections


def test_trained_section__shows_a_detector(run_folder: Path, tmp_path: Path) -> None:
    folder = make_segmentation_run(run_folder, tmp_path / "boxes")
    (folder / "cases.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5, "val_ap": 0.4}\n')
    write_record(folder / "detections.json", CaseFacts(
        classes=("Mass",), tolerance=1.0, length_unit="pixels", volume_unit="pixels", masks_sha256="", splits={},
        encoder={},
    ))  # fmt: skip
    write_records(folder / "scores.json", [
        DetectionScore(
            label="Mass", split="val", encoder="run", primary=True, metric=metric, value=0.5, low=0.4, high=0.6,
            bootstrap=100, bootstrap_left_out=0, n=20, n_patients=10, n_boxes=25, n_positive=15,
        )
        for metric in ("ap", "ap50")
    ])  # fmt: skip
    write_records(folder / "differences.json", [])
    section = trained_section([read_run(folder)])
    (table,) = section.sections[0].blocks
    assert isinstance(table, Table)
    assert table.caption == "Mass on val: 20 images of 10 patients, 25 boxes in 15 images"
    assert table.head == ["", "AP", "AP50"]


def test_report__of_a_segmentation_run_does_not_ask_for_labels(run_folder: Path, tmp_path: Path) -> None:
    folder = make_segmentation_run(run_folder, tmp_path / "masks")
    page = write_report([folder]).read_text()
    assert "<h1>Segmentation network trained on" in page
    assert "Scores of detection and segmentation" in page
    assert "Validation Dice" in page
    assert "Dice AUROC" not in page
    assert "has not been evaluated" not in page
    assert "pretrained by momentum contrast" not in page
