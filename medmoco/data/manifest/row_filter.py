"""Row filters on manifest columns, such as `Pneumonia == 1` or `Age >= 18 and ViewPosition in (PA, AP)`.

    conditions := condition ("and" condition)*
    condition  := column ("==" | "!=" | "<" | "<=" | ">" | ">=") value
                | column ("in" | "not in") "(" value ("," value)* ")"

Columns and values may be quoted. Cells are compared as they are in the file, before any label policy. A number
without quotes equals every cell of the same value ("1" and "1.0"), except in ID columns, which are text. A blank cell
meets only the condition `== ""`.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.columns import PATIENT, STUDY, other_name
from medmoco.errors import ManifestError, SettingsError

_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT_COLUMNS = ("Path", PATIENT, STUDY)
_TOKEN = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(==|!=|<=|>=|<|>|\(|\)|,)|([^\s"'=!<>(),]+))""")


@dataclass(frozen=True)
class _Token:
    text: str
    kind: str  # "quoted", "sign" or "word"


@dataclass(frozen=True)
class _Condition:
    column: str
    sign: str
    values: tuple[_Token, ...]


def matching_rows(table: pd.DataFrame, rows: NDArray[np.int64], expression: str) -> NDArray[np.bool_]:
    """Return the mask (N,) of the records that meet every condition.

    Args:
        table: N records of text cells.
        rows: (N,) row numbers, for messages.
        expression: Filter in the grammar above.

    Raises:
        SettingsError: the expression cannot be parsed, or names a missing column.
        ManifestError: a cell compared by order is not a number; names the row.
    """
    mask = np.ones(len(table), dtype=bool)
    for condition in _parse(expression):
        if condition.column not in table.columns:
            raise SettingsError(
                f"where: no column {condition.column!r}{did_you_mean(condition.column, list(table.columns))}"
            )
        mask &= _meets(table[condition.column], rows, condition)
    return mask


def did_you_mean(name: str, columns: Sequence[str]) -> str:
    """Return "; did you mean ...?" if a column is a synonym of a name or spelled almost alike, else blank."""
    if other := other_name(name, columns):
        return f"; did you mean {other!r}?"
    plain = {column.strip().lower(): column for column in columns}
    close = difflib.get_close_matches(name.strip().lower(), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def decimal_comma(cell: str) -> str:
    """Return the remedy for a number such as "0,5"; blank if the cell is not one."""
    return (
        "; it has a decimal comma: write numbers with a point, as in 0.5"
        if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cell)
        else ""
    )


def _meets(cells: pd.Series[str], rows: NDArray[np.int64], condition: _Condition) -> NDArray[np.bool_]:
    codes, distinct = pd.factorize(cells)  # each distinct text is compared once
    texts = [text.strip() for text in distinct]
    if condition.sign in _ORDERS:
        limit = _number(condition.values[0].text)
        numbers = [_number(text) for text in texts]
        bad = np.array([text != "" and number is None for text, number in zip(texts, numbers, strict=True)])[codes]
        if bad.any():
            raise ManifestError(
                f"where: '{condition.column} {condition.sign} ...' needs numbers, but row {rows[bad.argmax()]} "
                f"({bad.sum()} such rows) has another value{decimal_comma(cells.iloc[bad.argmax()])}"
            )
        compare = _ORDERS[condition.sign]
        return np.array([number is not None and bool(compare(number, limit)) for number in numbers], dtype=bool)[codes]
    as_text = condition.column in _TEXT_COLUMNS
    equal = np.array([any(_equal(text, value, as_text) for value in condition.values) for text in texts], dtype=bool)
    if condition.sign in ("!=", "not in"):
        equal = ~equal & np.array([text != "" for text in texts], dtype=bool)
    return equal[codes]


def _equal(text: str, value: _Token, as_text: bool) -> bool:
    if text == value.text:
        return True
    number = None if as_text or value.kind == "quoted" else _number(value.text)
    return number is not None and _number(text) == number


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None


def _parse(expression: str) -> list[_Condition]:
    tokens = _tokens(expression)
    conditions: list[_Condition] = []
    position = 0
    while True:
        condition, position = _parse_condition(tokens, position, expression)
        conditions.append(condition)
        if position == len(tokens):
            return conditions
        if tokens[position] != _Token("and", "word"):
            raise _unreadable(expression, f"expected 'and' before {tokens[position].text!r}")
        position += 1


def _tokens(expression: str) -> list[_Token]:
    tokens, position = [], 0
    while expression[position:].strip():
        if not (match := _TOKEN.match(expression, position)):
            raise _unreadable(expression, f"stopped at {expression[position:].strip()!r}")
        quoted = match[1] if match[1] is not None else match[2]
        kind = "quoted" if quoted is not None else "sign" if match[3] else "word"
        tokens.append(_Token(quoted if quoted is not None else match[3] or match[4], kind))
        position = match.end()
    return tokens


def _parse_condition(tokens: list[_Token], position: int, expression: str) -> tuple[_Condition, int]:
    def take(*expected: str) -> _Token:
        nonlocal position
        token = tokens[position] if position < len(tokens) else _Token("", "end")
        fits = token.text in expected and token.kind != "quoted" if expected else token.kind in ("quoted", "word")
        if not fits:
            actual = repr(token.text) if token.kind != "end" else "the end"
            raise _unreadable(expression, f"expected {' or '.join(expected) or 'a name or value'}, found {actual}")
        position += 1
        return token

    column = take().text
    sign = take("==", "!=", *_ORDERS, "in", "not").text
    if sign not in ("in", "not"):
        value = take()
        if sign in _ORDERS and _number(value.text) is None:
            raise _unreadable(expression, f"{sign} needs a number, found {value.text!r}")
        return _Condition(column, sign, (value,)), position
    if sign == "not":
        take("in")
        sign = "not in"
    take("(")
    values = [take()]
    while take(",", ")").text == ",":
        values.append(take())
    return _Condition(column, sign, tuple(values)), position


def _unreadable(expression: str, reason: str) -> SettingsError:
    return SettingsError(
        f"where: cannot parse {expression!r}: {reason};\n"
        "an example is: Pneumonia == 1 and 'View Position' in (PA, AP); put names with spaces in quotes"
    )
