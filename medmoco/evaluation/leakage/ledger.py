"""Who looked at the test split, and how often: one line for each look, beside the run.

A test score is honest only while nothing is chosen by it. So a look is an explicit act, and leaves a line that a report
counts. The line holds what was scored and what came out, and no path, id or host.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError
from medmoco.training.checkpoint import is_run

LEDGER = "ledger.jsonl"

Look = dict[str, Any]


def ledger_of(encoder: str, out: Path) -> Path:
    """Return where the looks at a run's test split are noted: in the run, or beside the results where there is none."""
    run = Path(encoder)
    return (run if is_run(run) else out) / LEDGER


def add_look(
    ledger: Path,
    command: str,
    test: Split,
    settings: RunSettings,
    encoders: Sequence[str],
    aurocs: Mapping[str, float | None],
) -> int:
    """Note a look at the test split; return how many there are by now.

    Args:
        ledger: File to add a line to.
        command: The command that looked.
        test: What was scored.
        settings: Of the scoring.
        encoders: What was scored, the first being the one that matters.
        aurocs: Of the first encoder, by label.

    Raises:
        CheckpointError: the ledger cannot be written or read; a look that is not noted shall not be taken.
    """
    look: Look = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "manifest_sha256": test.sha256,
        "labels": list(test.label_names),
        "where": settings.evaluate.where,
        "rows": len(test),
        "encoders": list(encoders),
        "auroc": dict(aurocs),
    }
    try:
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(look, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"the look at the test split cannot be noted in {ledger}: {error.strerror}") from None
    return len(looks(ledger))


def looks(ledger: Path) -> list[Look]:
    """Read every look; none where there is no ledger.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        lines = ledger.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{ledger} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise CheckpointError(
                f"{ledger}, line {number} is damaged; mend or delete that line, so that looks are counted"
            ) from None
    return found
