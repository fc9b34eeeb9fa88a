"""Repeat an export's proof anywhere, without the run and without its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medmoco.errors import CheckpointError, first_line
from medmoco.exporting.parity import CASES, SUMS, NotInstalledError, compare, load_cases
from medmoco.utils.files import sha256_of

Record = dict[str, Any]

# Loading these can run what is in them: torch.export falls back to pickle, a bundle's configuration is Python.
RUN_CODE = ("program", "monai-bundle")

VERIFIED = "verified"

_WORDS = {0: "outputs", 1: "difference", 2: "allowed", 3: "float16", 4: "bfloat16", 5: "loaded with"}


def verify(folder: Path, log: Callable[[str], None], *, trust: bool = False) -> dict[str, str]:
    """Check every file of an export against its hash, then load each format in a new process and compare.

    Files that are damaged are not loaded.

    Args:
        folder: Folder that `medmoco export` wrote.
        log: Receives a table with a line for each format.
        trust: Also load formats that can execute code: hashes prove that a folder is complete, not who made it.

    Returns:
        For each format "verified", or why it was not checked.

    Raises:
        CheckpointError: a file is changed, missing or not of the export, or gives other outputs.
    """
    count = check_files(folder)
    parity = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    cases, expected = load_cases(folder / CASES)
    log(f"{count} files are as they were written; outputs for {len(cases)} synthetic images:")
    rows, failures = [["format", *_WORDS.values()]], []
    outcomes: dict[str, str] = {}
    for name in (record["format"] for record in parity["formats"]):
        if name in RUN_CODE and not trust:
            outcomes[name] = "not loaded: it can execute code; --trust loads it"
            rows.append([name, outcomes[name]])
            continue
        try:
            rows.append([name, *_cells(compare(name, folder, cases, expected))])
            outcomes[name] = VERIFIED
        except NotInstalledError as library:
            outcomes[name] = f"not checked: {library} is not installed"
            rows.append([name, outcomes[name]])
        except CheckpointError as error:
            failures.append(f"{name}: {first_line(error)}")
            rows.append([name, "FAILED"])
    log(_table(rows))
    if failures:
        raise CheckpointError("\n".join(["the export is not what it was proved to be", *failures[:4]]))
    skipped = [name for name, outcome in outcomes.items() if outcome != VERIFIED]
    if skipped:
        log(f"{len(skipped)} of {len(outcomes)} formats were not checked")
    return outcomes


def check_files(folder: Path) -> int:
    """Compare the files of an export with SHA256SUMS; return how many there are.

    Raises:
        CheckpointError: a file is changed, missing or extra, or the folder is no export.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        recorded = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {SUMS}, so it is no export of medmoco, or not all of it") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{folder / SUMS} is damaged; copy the export again") from None
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {SUMS}
    findings = [f"{name} is missing" for name in sorted(recorded.keys() - found)]
    findings += [f"{name} is not of the export" for name in sorted(found - recorded.keys())]
    findings += [
        f"{name} is changed: its SHA-256 differs"
        for name in sorted(recorded.keys() & found)
        if sha256_of(folder / name) != recorded[name]
    ]
    if findings:
        more = [f"and {len(findings) - 3} more"] if len(findings) > 3 else []
        raise CheckpointError("\n".join(["the export is not as it was written; copy it again", *findings[:3], *more]))
    return len(recorded)


def _cells(record: Record) -> list[str]:
    half = record["half_precision"]
    differences = [half.get(precision, "-") for precision in ("float16", "bfloat16")]
    versions = ", ".join(f"{library} {version}" for library, version in record["libraries"].items())
    return [
        ", ".join(record["outputs"]),
        f"{record['max_relative_difference']:.1e}",
        f"{record['tolerance']:g}",
        *(value if isinstance(value, str) else f"{value:.1e}" for value in differences),
        versions,
    ]


def _table(rows: list[list[str]]) -> str:
    """Align columns; a row of fewer cells ends in free text."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[place]) for row in full) for place in range(len(rows[0]) - 1)]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), *row[len(widths) :]]
        ).rstrip()
        for row in rows
    )
