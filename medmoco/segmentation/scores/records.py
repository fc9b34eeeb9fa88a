"""The file with the scores of each image, which other runs read for comparison, and the facts about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.manifest import read_table
from medmoco.errors import CheckpointError, DataError, SettingsError
from medmoco.evaluation.metrics.auroc import or_none
from medmoco.evaluation.record_files import read_record, write_record
from medmoco.evaluation.records import Count, Part, Record, Share, Text, unit_of
from medmoco.evaluation.scoring.trained_records import Distance
from medmoco.segmentation.scores.metrics import Measures
from medmoco.training.runlog import explaining_disk_errors
from medmoco.utils.files import replacing

CASES, FACTS = "cases.csv", "cases.json"

Integers = NDArray[np.int64]
Volume = Annotated[float, unit_of("mL; in 2-D mm2, or pixels")]


class CaseScore(Part):
    """One line of cases.csv: a class of one image; None if the class is in neither mask."""

    split: Text
    """Name of the split."""
    row: Count
    """Row of the image in the manifest."""
    label: Text
    """Name of the class."""
    dice: Share | None
    """Dice coefficient."""
    surface_dice: Share | None
    """Normalised surface Dice."""
    hd95: Distance | None
    """95th percentile of the Hausdorff distance."""
    volume: Volume | None
    """Predicted volume; in 2-D, area."""
    truth: Volume | None
    """True volume."""


class CaseSplit(Part):
    """One scored split."""

    manifest_sha256: str
    """SHA-256 of its manifest."""
    images: int
    """Images with a mask."""


class CaseFacts(Record):
    """Content of cases.json, which describes cases.csv."""

    classes: tuple[str, ...]
    """Names of the classes 1 to C."""
    tolerance: float
    """Distance up to which surfaces agree, in length_unit."""
    length_unit: str
    """Unit of distances: mm, or pixels if some scored image does not state its pixel spacing."""
    volume_unit: str
    """Unit of volumes, mL; of areas in 2-D, mm2 or pixels."""
    masks_sha256: str
    """SHA-256 of what defines the true masks."""
    splits: dict[str, CaseSplit]
    """By name of the split."""
    encoder: dict[str, str | int | None]
    """Kind of source of the encoder (random, run or file), and its step."""


def case_scores(split: str, measures: Measures, rows: Integers, classes: Sequence[str]) -> list[CaseScore]:
    """Return a record for each image and class.

    Args:
        split: Name of the split.
        measures: Scores (N, C).
        rows: (N,) rows in the manifest.
        classes: C names.
    """
    columns = measures._asdict()
    return [
        CaseScore(
            split=split,
            row=row,
            label=label,
            **{name: or_none(column[position, place]) for name, column in columns.items()},
        )
        for position, row in enumerate(rows.tolist())
        for place, label in enumerate(classes)
    ]


def write_cases(folder: Path, measures: Mapping[str, Measures], rows: Mapping[str, Integers], facts: CaseFacts) -> None:
    """Write the scores of each image by row, and the facts about them.

    Args:
        folder: Folder of the run.
        measures: Scores (N, C) by split.
        rows: (N,) rows in the manifest by split.
        facts: Facts about all of these splits.

    Raises:
        CheckpointError: a file cannot be written.
    """
    cases = [case for split, own in measures.items() for case in case_scores(split, own, rows[split], facts.classes)]
    table = pd.DataFrame([case.model_dump() for case in cases], columns=list(CaseScore.model_fields))
    with explaining_disk_errors():
        write_record(folder / FACTS, facts)
        with replacing(folder / CASES) as temporary:
            table.to_csv(temporary, index=False)  # all digits, so that a run does not differ from itself


def read_cases(folder: Path, facts: CaseFacts, rows: Mapping[str, Integers]) -> tuple[dict[str, Measures], str]:
    """Read the scores of another run on the same images.

    Args:
        folder: Folder of the other run.
        facts: Facts about this run, with the splits to compare.
        rows: (N,) rows in the manifest of this run by split.

    Returns:
        Scores (N, C) by split, and the kind of the other encoder: random, run or file.

    Raises:
        CheckpointError: the folder has no scores, or they are damaged.
        SettingsError: they are for other images, masks or classes, or have another tolerance or other units.
    """
    if not all((folder / name).is_file() for name in (FACTS, CASES)):
        raise CheckpointError(
            f"--against: the folder lacks {FACTS} or {CASES}; name the folder of a finished segmentation run"
        )
    theirs = read_record(folder / FACTS, CaseFacts)
    _check_same(theirs, facts)
    try:
        table, _ = read_table(folder / CASES)
        tables = {split: table[table["split"] == split] for split in facts.splits}
        found = {split: own["row"].astype(int) for split, own in tables.items()}
        if any(set(found[split]) != set(rows[split].tolist()) for split in tables):
            raise _other("images")
        measures = {split: _as_measures(own, rows[split], facts.classes) for split, own in tables.items()}
    except (OSError, KeyError, ValueError, DataError):
        raise CheckpointError(f"--against: {CASES} is damaged; run segment there again") from None
    return measures, str(theirs.encoder.get("kind"))


def _check_same(theirs: CaseFacts, own: CaseFacts) -> None:
    """Refuse scores of another data set or protocol.

    Raises:
        SettingsError: as `read_cases`.
    """
    same = {
        "images": {split: theirs.splits.get(split) for split in own.splits} == own.splits,
        "masks": theirs.masks_sha256 == own.masks_sha256,
        "classes": theirs.classes == own.classes,
        "tolerance": theirs.tolerance == own.tolerance,
        "units": (theirs.length_unit, theirs.volume_unit) == (own.length_unit, own.volume_unit),
    }
    if not all(same.values()):
        raise _other(" and ".join(name for name, equal in same.items() if not equal))


def _other(differing: str) -> SettingsError:
    return SettingsError(
        f"--against: that run was scored with other {differing} than this one;\n"
        "score both runs with the same manifest, masks, classes, tolerance, evaluate.where and --test"
    )


def _as_measures(table: pd.DataFrame, rows: Integers, classes: Sequence[str]) -> Measures:
    """Sort the lines of a split by image and class.

    Raises:
        KeyError, ValueError: a line is damaged, is missing, or is there twice.
    """
    images = {row: position for position, row in enumerate(rows.tolist())}
    places = {label: place for place, label in enumerate(classes)}
    cells = [(images[int(row)], places[label]) for row, label in zip(table["row"], table["label"], strict=True)]
    if len(set(cells)) != len(cells) or len(cells) != rows.size * len(classes):
        raise ValueError("lines")
    index = tuple(np.array(cells, int).reshape(-1, 2).T)
    values = table[list(Measures._fields)].replace("", "nan").to_numpy(float)
    measures = Measures(*np.full((len(Measures._fields), rows.size, len(classes)), np.nan))
    for column, own in zip(measures, values.T, strict=True):
        column[index] = own
    return measures
