"""JSON lines: each line is an object, the record of a row; its values become text cells.

Numbers stay as they are written, true is 1, false is 0, and null, NaN and a missing key are blank cells. Rows are the
lines of the file, counted from 1, as there is no header.
"""

from __future__ import annotations

import json
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
_ESCAPES = (b"\\ud", b"\\uD", b"\\u0000")  # of characters that are none


def is_json_lines(path: Path) -> bool:
    """Return whether a file is named as JSON lines, compressed or not."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zip").endswith(SUFFIXES)


def read_json_lines(path: Path, raw: bytes) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the N records in the UTF-8 content of a file, as text cells, and the line of each.

    Raises:
        ManifestError: a line is not an object of plain values; names the line.
    """
    odd_escapes = any(escape in raw for escape in _ESCAPES)
    records, lines = [], []
    for number, line in enumerate(raw.decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                record = _record(line)
                if odd_escapes and ("\0" in (text := "".join(chain(*record.items()))) or not text.encode()):
                    raise ValueError("a value contains the escape \\u0000, which is not allowed")
            except UnicodeEncodeError:
                raise ManifestError(
                    f"{path}: line {number}: an escape such as \\ud800 stands for no character"
                ) from None
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{path}: line {number}: {error}") from None
            records.append(record)
            lines.append(number)
    columns = dict.fromkeys(chain.from_iterable(records))
    table = pd.DataFrame({name: [record.get(name, "") for record in records] for name in columns}, dtype=str)
    return table, np.array(lines, np.int64)


def _record(line: str) -> dict[str, str]:
    """Return the cells of a line; raises ValueError."""
    try:
        values = json.loads(line, parse_int=str, parse_float=str, parse_constant=_constant, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise ValueError(
            'this is not JSON; each line must be an object such as {"Path": "a.png", "Edema": 1}'
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"this is not an object; {_EXAMPLE}")
    if any(not isinstance(value, str) for value in values.values()):
        for name, value in values.items():
            if isinstance(value, list | dict):
                kind = "a list" if isinstance(value, list) else "an object"
                raise ValueError(f"the value of {name!r} is {kind}; values must be text, numbers, true, false or null")
        return {name: value if isinstance(value, str) else _WORDS[value] for name, value in values.items()}
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {name.strip(): value for name, value in pairs}
    if len(values) < len(pairs):
        names = [name.strip() for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} appears twice; keep one")
    return values


def _constant(text: str) -> str:
    return "" if text == "NaN" else text
