"""Verify an export on any machine, without the run or its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medmoco.config import Tree
from medmoco.errors import CheckpointError, first_line
from medmoco.exporting.parity import CASES, SUMS, NotInstalledError, compare, load_cases
from medmoco.utils.files import PathLike, sha256_of

# Loading these can run code: torch.export falls back to pickle, and a bundle's configuration contains Python.
RUN_CODE = ("program", "monai-bundle")

VERIFIED = "verified"

_HEAD = ["format", "outputs", "difference", "allowed", "float16", "bfloat16", "loaded with"]


def verify(folder: PathLike, *, trust: bool = False, log: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Check the hashes of an export, then load each format in a new process and compare its outputs.

    Damaged files are not loaded.

    Args:
        folder: Folder that `medmoco export` wrote.
        log: Receives a table with one line per format.
        trust: Also load formats that can run code: hashes prove that a folder is complete, not who made it.

    Returns:
        For each format "verified", or why it was not checked.

    Raises:
        CheckpointError: a file has changed, is missing or not part of the export, or gives other outputs.

    Examples:
        >>> import medmoco
        >>> medmoco.verify("export")
        {'safetensors': 'verified', 'onnx': 'verified'}
    """
    folder = Path(folder)
    count = check_files(folder)
    parity = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    cases, expected = load_cases(folder / CASES)
    kind = "volumes" if cases.ndim == 5 else "images"
    log(f"{count} files are unchanged; outputs for {len(cases)} synthetic {kind}:")
    rows, failures, outcomes = [_HEAD], [], {}
    for name in (record["format"] for record in parity["formats"]):
        try:
            if name in RUN_CODE and not trust:
                outcomes[name] = "not loaded: it can run code; --trust loads it"
            else:
                rows.append([name, *_cells(compare(name, folder, cases, expected))])
                outcomes[name] = VERIFIED
                continue
        except NotInstalledError as library:
            outcomes[name] = f"not checked: {library} is not installed"
        except CheckpointError as error:
            failures.append(f"{name}: {first_line(error)}")
        rows.append([name, outcomes.get(name, "FAILED")])
    log(_table(rows))
    if failures:
        raise CheckpointError("\n".join(["the export failed verification", *failures[:4]]))
    skipped = [name for name, outcome in outcomes.items() if outcome != VERIFIED]
    if skipped:
        log(f"{len(skipped)} of {len(outcomes)} formats were not checked")
    return outcomes


def check_files(folder: Path) -> int:
    """Compare the files of an export with SHA256SUMS; return how many there are.

    Raises:
        CheckpointError: a file has changed, is missing or extra, or the folder is not an export.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        recorded = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} lacks {SUMS}; it is not an export of medmoco, or is incomplete") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{folder / SUMS} is damaged; copy the export again") from None
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {SUMS}
    findings = [f"{name} is missing" for name in sorted(recorded.keys() - found)]
    findings += [f"{name} is not part of the export" for name in sorted(found - recorded.keys())]
    findings += [
        f"{name} has changed: its SHA-256 differs"
        for name in sorted(recorded.keys() & found)
        if sha256_of(folder / name) != recorded[name]
    ]
    if findings:
        more = [f"and {len(findings) - 3} more"] if len(findings) > 3 else []
        raise CheckpointError(
            "\n".join(["the export has changed since it was written; copy it again", *findings[:3], *more])
        )
    return len(recorded)


def _cells(record: Tree) -> list[str]:
    half = [record["half_precision"].get(precision, "-") for precision in ("float16", "bfloat16")]
    return [
        ", ".join(record["outputs"]),
        f"{record['max_relative_difference']:.1e}",
        f"{record['tolerance']:g}",
        *(value if isinstance(value, str) else f"{value:.1e}" for value in half),
        ", ".join(f"{library} {version}" for library, version in record["libraries"].items()),
    ]


def _table(rows: list[list[str]]) -> str:
    """Align all cells but the last of each row, which is free text."""
    widths = [max(len(row[at]) for row in rows if at < len(row) - 1) for at in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows)
