"""Read the scores that a run of detection or segmentation has in its own folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmoco.config import Tree
from medmoco.evaluation.record_files import read_records, shown_split
from medmoco.evaluation.scoring.trained_records import (
    DetectionDifference,
    DetectionScore,
    SegmentationDifference,
    SegmentationScore,
)

SEGMENTATION, DETECTION = "segmentation network", "detector"
TrainedScore = SegmentationScore | DetectionScore
TrainedDifference = SegmentationDifference | DetectionDifference

# The file that describes the predictions, the metric in training, and the records.
_KINDS: dict[str, tuple[str, str, type[TrainedScore], type[TrainedDifference]]] = {
    SEGMENTATION: ("cases.json", "val_dice", SegmentationScore, SegmentationDifference),
    DETECTION: ("detections.json", "val_ap", DetectionScore, DetectionDifference),
}


@dataclass(frozen=True)
class Trained:
    """Scores of a run of detection or segmentation; empty until it is finished.

    Attributes:
        network: What was trained.
        scores: scores.json.
        differences: differences.json.
    """

    network: str
    scores: Sequence[TrainedScore]
    differences: Sequence[TrainedDifference]

    @property
    def split(self) -> str:
        """The split to show."""
        return shown_split(self.scores)


def read_trained(folder: Path, metrics: Iterable[Tree]) -> Trained | None:
    """Return the scores of a run; None if it trained neither a detector nor a segmentation network.

    Args:
        folder: Run folder.
        metrics: Records of its metrics.jsonl.

    Raises:
        CheckpointError: a file is damaged.
    """
    logged = {key for record in metrics for key in record}
    for network, (facts, metric, score, difference) in _KINDS.items():
        if (folder / facts).is_file():
            return Trained(
                network, read_records(folder / "scores.json", score),
                read_records(folder / "differences.json", difference),
            )  # fmt: skip
        if metric in logged:
            return Trained(network, (), ())
    return None
