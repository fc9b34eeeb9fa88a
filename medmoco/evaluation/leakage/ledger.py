"""The ledger of test evaluations: a file in the run folder with a line for each evaluation on a test set.

A test score is unbiased only if no choice was based on it. So every test evaluation must be requested and is recorded
in a line, which reports count. It contains the names and scores of what was scored, but no path, id or host.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from medmoco.config import RunSettings, run_of
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError, first_line
from medmoco.evaluation.records import Part

LEDGER = "ledger.jsonl"


class LedgerEntry(Part):
    """One test evaluation."""

    time: str = ""
    """Time in UTC, as ISO 8601."""
    command: str = ""
    """Command that evaluated on the test set."""
    manifest_sha256: str = ""
    """SHA-256 of the manifest."""
    labels: tuple[str, ...] = ()
    """Labels that were scored."""
    where: str | None = None
    """Condition by which rows were selected; None if all were used."""
    rows: int | None = None
    """Number of test rows."""
    encoders: tuple[str, ...] = ()
    """Names of the encoders, the primary one first."""
    auroc: dict[str, float | None] = Field(default_factory=dict)
    """AUROC of the primary encoder by label or class, 0 to 1."""
    r2: dict[str, float | None] = Field(default_factory=dict)
    """R2 of the primary encoder by numeric target, at most 1."""
    dice: dict[str, float | None] = Field(default_factory=dict)
    """Dice of the primary encoder's segmentation by class, 0 to 1."""


def ledger_of(encoder: str, out: Path | None) -> Path | None:
    """Return the ledger in the run folder, or in the folder `out` of the results if the encoder is not a run."""
    folder = run_of(Path(encoder)) or out
    return folder / LEDGER if folder else None


def record_test_evaluation(
    ledger: Path,
    command: str,
    test: Split,
    settings: RunSettings,
    encoders: Sequence[str],
    **scores: Mapping[str, float | None],
) -> int:
    """Add a line to the ledger, see `LedgerEntry`; return its number of lines.

    Args:
        ledger: The file.
        command: Command that evaluated.
        test: The test split.
        settings: Settings of the evaluation.
        encoders: Names of the encoders, the primary one first.
        scores: Scores of the primary encoder: auroc, r2 or dice, by label, target or class.

    Raises:
        CheckpointError: the ledger cannot be written or read, and no score may be shown.
    """
    entry = LedgerEntry(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        manifest_sha256=test.sha256,
        labels=tuple(test.label_names),
        where=settings.evaluate.where,
        rows=len(test),
        encoders=tuple(encoders),
        **{metric: dict(values) for metric, values in scores.items()},
    )
    try:
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry.model_dump(), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"the test evaluation cannot be recorded in {ledger}: {error.strerror}") from None
    return len(read_ledger(ledger))


def note_on_test(count: int, ledger: Path) -> str:
    """Return the note below a table of test scores."""
    about = "a test score is unbiased only if no choice was based on it"
    return f"test evaluation {count}, recorded in {ledger.name}; {about}"


def read_ledger(ledger: Path) -> list[LedgerEntry]:
    """Return all test evaluations in the ledger, if it exists.

    Raises:
        CheckpointError: the ledger is damaged.
    """
    name, entries = f"{ledger.parent.name}/{ledger.name}", []
    try:
        lines = ledger.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name} cannot be read: {first_line(error)}") from None
    for number, line in enumerate(lines, 1):
        try:
            entries.append(LedgerEntry.model_validate_json(line))
        except ValidationError:
            raise CheckpointError(
                f"{name}, line {number} is damaged; repair or delete it, so that test evaluations can be counted"
            ) from None
    return entries
