"""Files with the detections of a run, which other runs read for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.config import Tree
from medmoco.data.manifest.manifest import read_table
from medmoco.detection.boxes import CORNERS, Annotations
from medmoco.detection.learning import Detections
from medmoco.errors import CheckpointError, DataError, SettingsError
from medmoco.evaluation.record_files import read_record, write_record
from medmoco.evaluation.records import Part, Record
from medmoco.training.runlog import explaining_disk_errors
from medmoco.utils.files import replacing

DETECTIONS, FACTS = "detections.csv", "detections.json"


class SplitFacts(Part):
    """One evaluated split."""

    manifest_sha256: str
    """SHA-256 of its manifest."""
    images: int
    """Annotated images."""
    boxes: int
    """Boxes in them."""


class Facts(Record):
    """Content of detections.json, which describes detections.csv."""

    labels: tuple[str, ...]
    """Labels of the boxes."""
    boxes_sha256: str
    """SHA-256 of the table of boxes."""
    splits: dict[str, SplitFacts]
    """By name of the split."""
    encoder: dict[str, str | int | None]
    """Kind of source of the encoder (random, run or file), and its step."""


def write_detections(folder: Path, found: Mapping[str, Detections], annotations: Annotations, source: Tree) -> None:
    """Write the detections by row, in pixels of the images, and the facts about them.

    Raises:
        CheckpointError: a file cannot be written.
    """
    frames = []
    for name, detections in found.items():
        frame = pd.DataFrame({
            "split": name,
            "row": annotations.splits[name].split.rows[detections.images],
            "label": np.array(annotations.labels, object)[detections.labels],
            "score": detections.scores,
        })  # fmt: skip
        frame[CORNERS] = detections.corners
        frames.append(frame)
    with explaining_disk_errors():
        write_record(folder / FACTS, _facts_of(annotations, list(found), source))
        with replacing(folder / DETECTIONS) as temporary:
            pd.concat(frames).to_csv(temporary, index=False, float_format="%.9g")


def _facts_of(annotations: Annotations, splits: Sequence[str], source: Tree) -> Facts:
    counted = {name: annotations.splits[name] for name in splits}
    return Facts(
        labels=tuple(annotations.labels),
        boxes_sha256=annotations.sha256,
        splits={
            name: SplitFacts(manifest_sha256=own.split.sha256, images=len(own), boxes=len(own.labels))
            for name, own in counted.items()
        },
        encoder=source,
    )


def read_detections(folder: Path, annotations: Annotations, splits: Sequence[str]) -> tuple[dict[str, Detections], str]:
    """Read the detections of another run on the same images.

    Args:
        folder: Folder of the other run.
        annotations: Boxes of this run.
        splits: Splits to compare.

    Returns:
        The detections by split, and the kind of the other encoder: random, run or file.

    Raises:
        CheckpointError: the folder has no detections.
        SettingsError: they are for other images, boxes or labels.
    """
    if not all((folder / name).is_file() for name in (FACTS, DETECTIONS)):
        raise CheckpointError(
            f"--against: {folder} lacks {FACTS} or {DETECTIONS}; name the folder of a finished detection run"
        )
    facts = read_record(folder / FACTS, Facts)
    own = _facts_of(annotations, splits, facts.encoder)
    theirs = {name: found for name, found in facts.splits.items() if name in splits}
    if facts.model_copy(update={"splits": theirs}) != own:
        raise SettingsError(
            f"--against: {folder} was evaluated on other images, boxes or labels ({', '.join(splits)}) than this run;\n"
            "manifest, table of boxes, detection.labels, unlisted and agreement, evaluate.where and --test must be"
            " the same"
        )
    try:
        table, _ = read_table(folder / DETECTIONS)
        found = {name: _as_detections(table[table["split"] == name], annotations, name) for name in splits}
    except (OSError, KeyError, ValueError, DataError):
        raise CheckpointError(f"--against: {folder / DETECTIONS} is damaged; run detect there again") from None
    return found, str(facts.encoder["kind"])


def _as_detections(table: pd.DataFrame, annotations: Annotations, name: str) -> Detections:
    """Convert rows and labels to positions and codes.

    Raises:
        KeyError, ValueError: a cell is damaged.
    """
    position = {row: place for place, row in enumerate(annotations.splits[name].split.rows.tolist())}
    codes = {label: code for code, label in enumerate(annotations.labels)}
    return Detections(
        images=np.array([position[int(row)] for row in table["row"]], np.int64),
        corners=table[CORNERS].to_numpy(float),
        labels=np.array([codes[label] for label in table["label"]], np.int64),
        scores=table["score"].to_numpy(float),
    )
