"""Folders as `segment` and `curve --segment` leave them, made from synthetic scores, for the tests of reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from medmoco.evaluation.record_files import write_record, write_records
from medmoco.evaluation.records import FROM_SCRATCH
from medmoco.evaluation.results import Curve
from medmoco.segmentation.scores.curve_points import Scored, Trained, differences_between, points_of
from medmoco.segmentation.scores.metrics import OF_VOLUMES, Measures
from medmoco.segmentation.scores.records import CaseFacts
from medmoco.segmentation.scores.scoring import differences_of, records_of, score

CLASSES = ("anterior", "posterior")
PATIENTS = np.arange(24) // 2


def made_measures(skill: float, seed: int = 0) -> Measures:
    """Return scores of 24 images; the second class is missed in one, and absent in another."""
    rng = np.random.default_rng(seed)  # the same images for every skill
    dice = np.clip(rng.normal(skill, 0.05, (24, 2)), 0.05, 0.99)
    truth = rng.uniform(1, 2, (24, 2))
    measures = Measures(dice, np.clip(dice + 0.05, 0, 0.995), 3 / dice, truth * (1 + 0.1 * (dice - 0.7)), truth)
    for column, value in zip(measures, (0, 0, 60, 0, 1.5), strict=True):
        column[0, 1], column[1, 1] = value, np.nan
    return measures


def make_segmentation_run(source: Path, folder: Path, *, splits: tuple[str, ...] = ("val", "test")) -> Path:
    """Write the run of a segmentation network that was compared with training from scratch.

    Args:
        source: Another run folder, whose settings and manifest it has.
        folder: Folder to write.
        splits: Splits that it has scored.
    """
    folder.mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "status.json"):
        shutil.copy(source / name, folder / name)
    lines = [{"step": step, "loss": 2 - step / 10, "val_dice": 0.5 + step / 30} for step in range(1, 10)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ours, theirs = made_measures(0.8), made_measures(0.7)
    records, differences = [], []
    for split in splits:
        for measures, name in ((ours, "run"), (theirs, FROM_SCRATCH)):
            found = score(measures, PATIENTS, CLASSES, draws=200, seed=0)
            records += records_of(
                split, measures, PATIENTS, CLASSES, found, units=OF_VOLUMES, tolerance=2.0, encoder=name,
                primary=name == "run",
            )  # fmt: skip
        differences += differences_of(
            split, (ours, theirs), PATIENTS, CLASSES, ("run", FROM_SCRATCH), units=OF_VOLUMES, draws=200, seed=0
        )
    write_records(folder / "scores.json", records)
    write_records(folder / "differences.json", differences)
    facts = CaseFacts(
        classes=CLASSES, tolerance=2.0, length_unit="mm", volume_unit="mL", masks_sha256="0" * 64, splits={},
        encoder={"kind": "run"},
    )  # fmt: skip
    write_record(folder / "cases.json", facts)
    return folder


def make_segmentation_curve(folder: Path) -> Curve:
    """Write a label-efficiency curve in which the encoder gains with few masks, but not with all."""
    scored = Scored(CLASSES, {"val": PATIENTS}, 2.0, "mm", 200, 0)
    points, differences = [], []
    for fraction, skills, draws in ((0.1, (0.75, 0.6), 2), (1.0, (0.8, 0.8), 1)):
        trained = [
            Trained(name, name == "run", fraction, 40 * fraction, 20 * fraction,
                    [{"val": made_measures(skill, seed)} for seed in range(draws)])
            for name, skill in zip(("run", FROM_SCRATCH), skills, strict=True)
        ]  # fmt: skip
        points += [point for each in trained for point in points_of(each, scored)]
        differences += differences_between(trained[0], trained[1], scored)
    order = [*CLASSES, "macro"]
    points.sort(key=lambda point: (order.index(point.label), point.encoder != "run", point.fraction))
    found = Curve((), (), "table\n", segmentation=tuple(points), segmentation_differences=tuple(differences))
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder)
    return found
