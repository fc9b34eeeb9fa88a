"""What runs of detection and segmentation share when they are scored: options, names of encoders, and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.leakage.ledger import ledger_of, note_on_test, record_test_evaluation
from medmoco.evaluation.scoring.table import MACRO


@dataclass(frozen=True)
class Scoring:
    """What to evaluate after training.

    Attributes:
        test: Also evaluate on the test set, which is recorded in the ledger.
        against: Folder of another run on the same images, for paired differences.
        pictures: PNG file to write, with truth and predictions on a few images.
        in_ledger: Whether the run records its test evaluation; a curve does so once for all of its runs.
    """

    test: bool = False
    against: Path | None = None
    pictures: Path | None = None
    in_ledger: bool = True


VAL_ONLY = Scoring()


def paired_names(kind: str, other: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of an encoder and of the one it is compared with, which differ.

    Args:
        kind: Kind of its source: random, run or file.
        other: That of the other one.
        names: Names of kinds that are not called like the kind.
    """
    name, control = names.get(kind, kind), names.get(other, other)
    return name, control if control != name else "other"


def record_test(
    command: str, settings: RunSettings, encoder: str, test: Split | None, scores: Sequence[Any], metric: str
) -> str:
    """Record a test-set evaluation in the ledger before any score is shown; return the note about it.

    Args:
        command: The command.
        settings: Settings of the run.
        encoder: Source of the encoder, whose run has the ledger; otherwise the run folder has it.
        test: The test split, if it was evaluated.
        scores: Records with split, label, metric, encoder, primary and value.
        metric: The one to record, which the ledger knows by its name.

    Raises:
        CheckpointError: the ledger cannot be written or read.
    """
    if test is None:
        return "test was not evaluated; --test does so and records it in the ledger"
    ledger = ledger_of(encoder, settings.out)
    assert ledger  # there is a run folder
    own = [score for score in scores if (score.split, score.metric) == ("test", metric) and score.primary]
    encoders = list(dict.fromkeys(score.encoder for score in own))
    values = {score.label: score.value for score in own if score.label != MACRO}
    return note_on_test(
        record_test_evaluation(ledger, command, test, settings, encoders, **{metric: values}), ledger
    )  # fmt: skip
