"""The ledger of test evaluations: one line for each time that a test split was scored, kept in the run.

A test score is unbiased only while no choice is based on it. So a test evaluation is an explicit act, and leaves a line
that a report counts. The line holds what was scored and the AUROCs, and no path, id or host.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError, first_line
from medmoco.evaluation.records import Part
from medmoco.training.checkpoint import is_run

LEDGER = "ledger.jsonl"


class LedgerEntry(Part):
    """One test evaluation."""

    time: str = ""
    """When, in UTC, as ISO 8601."""
    command: str = ""
    """The command that scored the test split."""
    manifest_sha256: str = ""
    """SHA-256 of the manifest."""
    labels: tuple[str, ...] = ()
    """Labels that were scored."""
    where: str | None = None
    """Condition that chose the rows, or None for all."""
    rows: int | None = None
    """Rows of the test split."""
    encoders: tuple[str, ...] = ()
    """Names of the encoders, the one in question first."""
    auroc: dict[str, float | None] = Field(default_factory=dict)
    """AUROC of that encoder by label, 0 to 1."""


def ledger_of(encoder: str, out: Path | None) -> Path | None:
    """Return the ledger: in the run folder, or next to the results where the encoder is not a run.

    Args:
        encoder: Run folder, weights file, or "random".
        out: Folder of the results, if they are written.

    Returns:
        None where there is neither.
    """
    run = Path(encoder)
    folder = run if is_run(run) else out
    return folder / LEDGER if folder else None


def record_test_evaluation(
    ledger: Path,
    command: str,
    test: Split,
    settings: RunSettings,
    encoders: Sequence[str],
    aurocs: Mapping[str, float | None],
) -> int:
    """Add a line to the ledger; return how many it has now.

    Args:
        ledger: File to add a line to.
        command: The command that scored the test split.
        test: What was scored.
        settings: Of the scoring.
        encoders: What was scored, the encoder in question first.
        aurocs: Of this encoder, by label.

    Raises:
        CheckpointError: the ledger cannot be written or read; then no score may be shown.
    """
    entry = LedgerEntry(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        manifest_sha256=test.sha256,
        labels=tuple(test.label_names),
        where=settings.evaluate.where,
        rows=len(test),
        encoders=tuple(encoders),
        auroc=dict(aurocs),
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
    """Read every test evaluation; none where there is no ledger.

    Raises:
        CheckpointError: it is damaged.
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
                f"{name}, line {number} is damaged; repair or delete it, so that test evaluations are counted"
            ) from None
    return entries
