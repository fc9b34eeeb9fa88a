"""JSON lines: each line is an object, the record of a row; its values become text cells.

Numbers stay as they are written, true is 1, false is 0, and null, NaN and a missing name are blank cells. Rows are the
lines of the file, counted from 1, as there is no header.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.errors import ManifestError

SUFFIXES = (".jsonl", ".ndjson")
_WORDS = {True: "1", False: "0", None: ""}
_EXAMPLE = 'each line must be an object such as {"Path": "a.png", "Edema": 1}'
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # which escapes can produce, and text files cannot contain
_ESCAPES = (b"\\u0000", b"\\ud", b"\\uD")
_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=lambda text: "" if text == "NaN" else text, object_pairs_hook=list
)


def is_json_lines(path: Path) -> bool:
    """Return whether a file is named as JSON lines, compressed or not."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zip").endswith(SUFFIXES)


def read_json_lines(path: Path, raw: bytes) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the N records in the UTF-8 content of a file, as text cells, and the line of each.

    Raises:
        ManifestError: a line is not an object of plain values; names the line.
    """
    lines = raw.decode("utf-8-sig").split("\n")
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    records = [_record(path, number, lines[number - 1]) for number in filled]
    names = dict.fromkeys(chain.from_iterable(records))
    columns: dict[str, list[Any]] = {name.strip(): [record.get(name) for record in records] for name in names}
    if len(columns) < len(names) or "" in columns:
        raise ManifestError(f"{path}: a name is blank, or two differ only in surrounding spaces; correct them")
    odd_escapes = any(escape in raw for escape in _ESCAPES)
    if odd_escapes and _NO_TEXT.search("".join(names)):
        raise ManifestError(f"{path}: a name contains an escape such as \\u0000, which stands for no character")
    for name, cells in columns.items():
        kinds = set(map(type, cells))  # a million cells at once, as Python is slow with one at a time
        if list in kinds:
            line = filled[next(at for at, cell in enumerate(cells) if isinstance(cell, list))]
            raise ManifestError(
                f"{path}: line {line}: the value of {name!r} is a list or an object; values must be text, numbers,\n"
                "true, false or null. Write parts as names of their own, and lists as text such as 'Edema|Mass'"
            )
        if kinds != {str}:
            cells = columns[name] = [cell if isinstance(cell, str) else _WORDS[cell] for cell in cells]
        if odd_escapes:
            _refuse_no_text(path, cells, filled)
    return pd.DataFrame(columns, dtype=str), np.array(filled, np.int64)


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return the values of a line by name."""
    try:
        pairs = _DECODER.decode(line)
    except (ValueError, RecursionError):
        raise ManifestError(f"{path}: line {number} is not JSON; {_EXAMPLE}") from None
    if not line.lstrip().startswith("{"):
        raise ManifestError(f"{path}: line {number} is not an object; {_EXAMPLE}")
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for before, (name, _) in enumerate(pairs) if name in dict(pairs[:before]))
        raise ManifestError(f"{path}: line {number}: the name {twice!r} appears twice; keep one")
    return record


def _refuse_no_text(path: Path, cells: list[str], lines: list[int]) -> None:
    for line, cell in zip(lines, cells, strict=True):
        if _NO_TEXT.search(cell):
            raise ManifestError(f"{path}: line {line}: an escape such as \\u0000 or \\ud800 stands for no character")
