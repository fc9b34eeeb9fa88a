"""Conditions on manifest columns, such as `Pneumonia == 1` or `Age >= 18 and ViewPosition in (PA, AP)`.

    conditions := condition ("and" condition)*
    condition  := column ("==" | "!=" | "<" | "<=" | ">" | ">=") value
                | column ("in" | "not in") "(" value ("," value)* ")"

Columns and values may be quoted; names with spaces must be. Conditions apply to the cells as written in the file,
before any label policy. An unquoted number matches every cell of the same value ("1" and "1.0"), except in id columns,
which are text. A blank cell meets no condition except `== ""`.

Python's own parser reads the expression after every word has been replaced by underscores: comparisons of placeholders
remain, of which only those above are allowed. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.columns import IDENTIFYING, other_name
from medmoco.errors import ManifestError, SettingsError

_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in",
    ast.NotIn: "not in",
}  # fmt: skip
_KEYWORD = r"""and(?![^\s"'=!<>(),])|(?:not\s+)?in(?=\s*\()"""
_WORD = re.compile(rf"""({_KEYWORD})|"([^"]*)"|'([^']*)'|([^\s"'=!<>(),]+)""")


@dataclass(frozen=True)
class _Word:
    text: str
    quoted: bool


@dataclass(frozen=True)
class _Condition:
    column: str
    sign: str
    values: tuple[_Word, ...]


def matching_rows(
    table: pd.DataFrame, rows: NDArray[np.int64], expression: str, key: str = "where"
) -> NDArray[np.bool_]:
    """Return the mask (N,) of the records of text cells that meet every condition; `rows` (N,) are for messages.

    `key` is the setting with the expression, for messages.

    Raises:
        SettingsError: the expression is invalid, or the table lacks one of its columns.
        ManifestError: an ordered comparison meets a cell that is not a number; gives the row.
    """
    mask = np.ones(len(table), dtype=bool)
    for condition in _parse(expression, key):
        if condition.column not in table.columns:
            raise SettingsError(
                f"{key}: no column {condition.column!r}{did_you_mean(condition.column, list(table.columns))}"
            )
        mask &= _meets(table[condition.column], rows, condition, key)
    return mask


def did_you_mean(name: str, columns: Sequence[str]) -> str:
    """Return "; did you mean ...?" for a name of the same meaning or of similar spelling, else an empty text."""
    if other := other_name(name, columns):
        return f"; did you mean {other!r}?"
    plain = {column.strip().lower(): column for column in columns}
    close = difflib.get_close_matches(name.strip().lower(), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def where_words(expression: object) -> str:
    """Describe in a report which rows a condition selects, without the IDs in it."""
    if not expression:
        return "all"
    return "some, chosen by id" if names_ids(expression) else str(expression)


def names_ids(expression: object) -> bool:
    """Return whether a condition is on a column whose cells must not be shown, so that it contains some of them."""
    return any(name in str(expression) for name in IDENTIFYING)


def decimal_comma(cell: str) -> str:
    """Return advice for a number such as "0,5", else an empty text."""
    return (
        "; it has a decimal comma: write numbers with a point, as in 0.5"
        if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cell)
        else ""
    )


def _meets(cells: pd.Series[str], rows: NDArray[np.int64], condition: _Condition, key: str) -> NDArray[np.bool_]:
    codes, distinct = pd.factorize(cells)  # each distinct text is compared once
    texts = [text.strip() for text in distinct]
    if condition.sign in _ORDERS:
        limit = number_in(condition.values[0].text)
        numbers = [number_in(text) for text in texts]
        bad = np.array([text != "" and number is None for text, number in zip(texts, numbers, strict=True)])[codes]
        if bad.any():
            more = f" ({bad.sum()} rows in all)" if bad.sum() > 1 else ""
            raise ManifestError(
                f"{key}: '{condition.column} {condition.sign} ...' needs numbers, but row {rows[bad.argmax()]}{more}"
                f" does not have one{decimal_comma(cells.iloc[bad.argmax()])}"
            )
        compare = _ORDERS[condition.sign]
        return np.array([number is not None and bool(compare(number, limit)) for number in numbers], dtype=bool)[codes]
    as_text = condition.column in IDENTIFYING
    equal = np.array([any(_equal(text, value, as_text) for value in condition.values) for text in texts], dtype=bool)
    if condition.sign in ("!=", "not in"):
        equal = ~equal & np.array([text != "" for text in texts], dtype=bool)
    return equal[codes]


def _equal(text: str, value: _Word, as_text: bool) -> bool:
    if text == value.text:
        return True
    number = None if as_text or value.quoted else number_in(value.text)
    return number is not None and number_in(text) == number


def number_in(text: str) -> float | None:
    """Return the number that a text is, such as "03", ".5" or "1e3"; None if it is none."""
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None


def _parse(expression: str, key: str) -> list[_Condition]:
    text = expression.strip()
    words: dict[tuple[int, int | None], _Word] = {}

    def placeholder(match: re.Match[str]) -> str:
        keyword, double, single, bare = match.groups()
        if keyword:
            return match[0]
        words[match.span()] = _Word(bare or double or single or "", quoted=bare is None)
        return "_" * len(bare) if bare else f"'{'_' * (len(match[0]) - 2)}'"

    def word(node: ast.expr) -> _Word:
        place = (node.col_offset, node.end_col_offset)
        if place not in words:
            raise _unreadable(key, expression, f"expected a name or value, found {text[slice(*place)]!r}")
        return words[place]

    def condition(node: ast.expr) -> _Condition:
        match node:
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.List(elts=[_, *_] as values)]):
                pass
            case ast.Compare(ops=[sign], comparators=values) if not isinstance(sign, ast.In | ast.NotIn):
                pass
            case _:
                place = text[node.col_offset : node.end_col_offset]
                raise _unreadable(key, expression, f"{place!r} does not compare a column with a value")
        found = _Condition(word(node.left).text, _SIGNS[type(node.ops[0])], tuple(map(word, values)))
        if found.sign in _ORDERS and number_in(found.values[0].text) is None:
            raise _unreadable(key, expression, f"{found.sign} needs a number, found {found.values[0].text!r}")
        return found

    # Brackets, unlike parentheses, remain in the tree around a single value.
    code = re.sub(r"\s", " ", _WORD.sub(placeholder, text)).replace("(", "[").replace(")", "]")
    try:
        tree = ast.parse(code, mode="eval").body
    except SyntaxError as error:
        rest = text[error.offset - 1 :] if error.offset else ""
        raise _unreadable(key, expression, f"stopped at {rest!r}" if rest else "it ends too early") from None
    return [condition(node) for node in (tree.values if isinstance(tree, ast.BoolOp) else [tree])]


def _unreadable(key: str, expression: str, reason: str) -> SettingsError:
    return SettingsError(
        f"{key}: cannot read {expression!r}: {reason};\n"
        "write for example: Pneumonia == 1 and 'View Position' in (PA, AP); quote names with spaces"
    )
