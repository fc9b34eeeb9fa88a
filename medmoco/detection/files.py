"""What a detection run leaves of its detections, and how another run reads it to be compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medmoco.config import Tree
from medmoco.data.manifest.manifest import read_table
from medmoco.detection.boxes import CORNERS, Annotated, Annotations
from medmoco.detection.learning import Detections
from medmoco.errors import CheckpointError, DataError, SettingsError
from medmoco.training.runlog import explaining_disk_errors, write_json
from medmoco.utils.files import replacing

DETECTIONS, FACTS = "detections.csv", "detections.json"


def write_detections(folder: Path, found: Mapping[str, Detections], annotations: Annotations, source: Tree) -> None:
    """Write the detections of some splits by row, in pixels of the images, and what they were made of.

    Raises:
        CheckpointError: the disk refuses.
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
        write_json(folder / FACTS, facts_of(annotations, list(found)) | {"encoder": source})
        with replacing(folder / DETECTIONS) as temporary:
            pd.concat(frames).to_csv(temporary, index=False, float_format="%.9g")


def facts_of(annotations: Annotations, splits: Sequence[str]) -> Tree:
    """Return what two detectors must have in common to be compared."""
    return {
        "labels": list(annotations.labels),
        "boxes_sha256": annotations.sha256,
        "splits": {name: _facts_of_split(annotations.splits[name]) for name in splits},
    }


def _facts_of_split(annotated: Annotated) -> Tree:
    counts = {"images": len(annotated), "boxes": len(annotated.labels)}
    return {"manifest_sha256": annotated.split.sha256, **counts}


def read_detections(folder: Path, annotations: Annotations, splits: Sequence[str]) -> tuple[dict[str, Detections], str]:
    """Read what another run has found in the same images.

    Args:
        folder: Of that run.
        annotations: Of this one.
        splits: To be compared.

    Returns:
        The detections by split, and what that run's encoder was: random, run or file.

    Raises:
        CheckpointError: the folder holds no detections.
        SettingsError: they are of other images, boxes or labels.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        table, _ = read_table(folder / DETECTIONS)
    except (OSError, ValueError, DataError):
        raise CheckpointError(
            f"--against: {folder} holds no {FACTS} and {DETECTIONS} that can be read; name a finished run of detect"
        ) from None
    own = facts_of(annotations, splits)
    theirs = {name: found for name, found in facts.get("splits", {}).items() if name in splits}
    if {**facts, "splits": theirs, "encoder": 0} != {**own, "encoder": 0}:
        raise SettingsError(
            f"--against: {folder} was scored on other images, boxes or labels ({', '.join(splits)}) than this run;\n"
            "its manifest, table of boxes, detection.labels, unlisted and agreement, evaluate.where, and --test must be"
            " the same"
        )
    try:
        found = {name: _as_detections(table[table["split"] == name], annotations, name) for name in splits}
    except (KeyError, ValueError):
        raise CheckpointError(f"--against: {folder / DETECTIONS} is damaged; make it again") from None
    return found, str(facts["encoder"]["kind"])


def _as_detections(table: pd.DataFrame, annotations: Annotations, name: str) -> Detections:
    """Put rows and labels back into numbers.

    Raises:
        KeyError, ValueError: a cell is not what was written.
    """
    position = {row: place for place, row in enumerate(annotations.splits[name].split.rows.tolist())}
    codes = {label: code for code, label in enumerate(annotations.labels)}
    return Detections(
        images=np.array([position[int(row)] for row in table["row"]], np.int64),
        corners=table[CORNERS].to_numpy(float),
        labels=np.array([codes[label] for label in table["label"]], np.int64),
        scores=table["score"].to_numpy(float),
    )
