"""Conditions on columns: the rows that meet them, and the messages for those that cannot be read."""

import io

import numpy as np
import pandas as pd
import pytest

from medmoco.data.manifest.row_filter import did_you_mean, matching_rows, where_words
from medmoco.errors import ManifestError, SettingsError

CELLS = """Path,PatientID,Age,View Position,A
a,00123,17,PA,1.0
b,123,18,AP,0
c,x,,LL,-1
d,y,64.5, PA,
e,z,7,"L,R",1
"""


def meeting(expression: str, cells: str = CELLS) -> list[int]:
    table = pd.read_csv(io.StringIO(cells), dtype=str, keep_default_na=False)
    rows = np.arange(2, 2 + len(table))
    mask = matching_rows(table, rows, expression)
    assert mask.dtype == bool
    assert mask.shape == rows.shape
    found: list[int] = rows[mask].tolist()
    return found


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("A == 1", [2, 6]),
        ("A == 1.0", [2, 6]),
        ("A == '1'", [6]),
        ("A != 1", [3, 4]),
        ('A == ""', [5]),
        ("A == -1", [4]),
        ("A in (0, -1)", [3, 4]),
        ("A not in (0,-1)", [2, 6]),
        ("Age >= 18", [3, 5]),
        ("Age<18", [2, 6]),
        ("Age > 18 and Age <= 64.5", [5]),
        ("PatientID == 123", [3]),
        ("PatientID == 00123", [2]),
        ("'View Position' in (PA, AP) and A == 1", [2]),
        ("'View Position' == PA", [2, 5]),
        ("'View Position' == 'L,R'", [6]),
        ('"View Position" in ("L,R", LL) and PatientID != x', [6]),
        ("Path in (a)", [2]),
        ("A in ('', 1)", [2, 5, 6]),
        ("A in ('1', '0')", [3, 6]),
        ("A in (1,)", [2, 6]),
        ("'A'in(1)and'Age'<10", [6]),
        ("A in(1) and\n  A not\tin (0)", [2, 6]),
        ("A == 1e0", [2, 6]),
        ("A == 7", []),
        ("  A==1  and Age<18 ", [2, 6]),
    ],
)
def test_matching_rows__rows(expression: str, rows: list[int]) -> None:
    assert meeting(expression) == rows


@pytest.mark.parametrize(
    ("sign", "rows"),
    [("<", [2]), ("<=", [2, 3, 4]), (">", [5]), (">=", [3, 4, 5]), ("==", [3, 4]), ("!=", [2, 5])],
)
def test_matching_rows__every_sign_at_its_limit(sign: str, rows: list[int]) -> None:
    """A blank cell, the last, meets none of them."""
    assert meeting(f"N {sign} 10", 'N\n9\n10\n10.0\n11\n" "\n') == rows
    assert meeting(f"N {sign} -10", 'N\n-11\n-10\n-10.0\n-9\n" "\n') == rows


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ('"Patient\'s view" == PA', [2]),
        ("'and' == in", [3]),
        ("'and' == 'and' and \"Patient's view\" != PA", [4]),
        ("'and' in ('x and y', \"(a, b)\")", [2, 5]),
        ("'and' == 'x and y' and \"Patient's view\" == \"PA\"", [2]),
    ],
)
def test_matching_rows__quotes_take_the_meaning_from_signs_and_words(expression: str, rows: list[int]) -> None:
    assert meeting(expression, 'Patient\'s view,and\nPA,x and y\nAP,in\nLL,and\nLL,"(a, b)"\n') == rows


@pytest.mark.parametrize("column", ["Path", "PatientID", "StudyID"])
def test_matching_rows__ids_are_text(column: str) -> None:
    assert meeting(f"{column} in (1, 2)", f"{column}\n1\n1.0\n01\n2\n") == [2, 5]


@pytest.mark.parametrize(
    "expression",
    [
        "", "A", "A =", "A = 1", "A == ", "A == 1 or A == 0", "A in 1", "A in (1", "A in ()", "Age < x", "A == 'x",
        "and", "A == (1)", "(A == 1)", "A in ((1))", "A in (1) == 2", "A == f'1'", "A == 'x''y'", "A(1) == 2",
        "A == 1, A == 2", "A in (1, A == 2)", "A not 1", "A == 1 and", "A == 1 A == 0", "A == 1)", "A <> 1",
        "'A' 'in' (1)", "1 < Age < 9",
    ],
)  # fmt: skip
def test_matching_rows__unreadable(expression: str) -> None:
    with pytest.raises(SettingsError, match="cannot read") as caught:
        meeting(expression)
    assert len(str(caught.value).splitlines()) <= 5
    assert repr(expression) in str(caught.value)


def test_matching_rows__unreadable_says_where_it_stopped() -> None:
    for expression, reason in {
        "A == 1 or A == 0": "stopped at 'or A == 0'",
        "A in (1": "stopped at '(1'",
        "Age < x": "< needs a number, found 'x'",
        "A = 1": "stopped at '= 1'",
        "  'é' = 1": "stopped at '= 1'",
        "A == ": "it ends too early",
        "1 < Age < 9": "'1 < Age < 9' does not compare a column with a value",
        "'A B' == 1 and A": "'A' does not compare",
        "A == f'1'": "stopped at \"'1'\"",
        "A == 'x''y'": "expected a name or value, found \"'x''y'\"",
    }.items():
        with pytest.raises(SettingsError) as caught:
            meeting(expression)
        assert reason in str(caught.value)


def test_matching_rows__column_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="no column 'ViewPosition'; did you mean 'View Position'"):
        meeting("ViewPosition == PA")
    with pytest.raises(SettingsError, match="no column 'age'; did you mean 'Age'"):
        meeting("A == 1 and age > 3")
    with pytest.raises(SettingsError, match=r"no column 'Sex'$"):
        meeting("Sex == F")
    with pytest.raises(SettingsError):
        meeting("__import__('os').system('x')")


def test_matching_rows__cells_that_are_no_numbers() -> None:
    with pytest.raises(
        ManifestError, match=r"'PatientID > \.\.\.' needs numbers, but row 4 \(3 rows in all\)"
    ) as caught:
        meeting("PatientID > 3")
    assert "x" not in str(caught.value)
    for cell in ("nan", "inf", "1_0", "0x1", "1,5", "-"):
        with pytest.raises(ManifestError, match="row 3 does not have one"):
            meeting("N >= 0", f'N\n1\n"{cell}"\n')


@pytest.mark.parametrize(
    ("name", "answer"),
    [("PATH", "Path"), (" path ", "Path"), ("Pth", "Path"), ("Effusion", " Effusion"), ("Sex", ""), ("", "")],
)
def test_did_you_mean__case_spaces_and_a_letter(name: str, answer: str) -> None:
    expected = f"; did you mean {answer!r}?" if answer else ""
    assert did_you_mean(name, ["Path", " Effusion", "Age"]) == expected


def test_did_you_mean__a_column_that_means_the_same() -> None:
    assert did_you_mean("subject_id", ["Path", "PatientID"]) == "; did you mean 'PatientID'?"
    assert did_you_mean("Path", ["A", "Image Index"]) == "; did you mean 'Image Index'?"


def test_matching_rows__a_decimal_comma_is_named() -> None:
    with pytest.raises(ManifestError, match=r"row 3 does not have one; it has a decimal comma"):
        meeting("A > 1", 'A\n1\n"1,5"\n')


@pytest.mark.parametrize("where", ["PatientID == 00123", "Path in (a.png)", "StudyID == 7"])
def test_where_words__ids_are_not_repeated(where: str) -> None:
    assert where_words(where) == "some, chosen by id"


def test_where_words__other_conditions_are() -> None:
    assert [where_words(None), where_words("Age >= 18")] == ["all", "Age >= 18"]
