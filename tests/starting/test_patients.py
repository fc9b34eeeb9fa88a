"""Patients from file names."""

from __future__ import annotations

import pandas as pd
import pytest

from medmoco.errors import SettingsError
from medmoco.starting.patients import extract_patients, suggest_pattern

KERMANY = ["NORMAL/IM-0115-0001.jpeg", "NORMAL/NORMAL2-IM-0824-0001.jpeg", "PNEUMONIA/person12_bacteria_3.jpeg"]


def _series(names: list[str]) -> pd.Series:
    return pd.Series(names, dtype=str)


def test_extract_patients__from_the_file_name() -> None:
    assert list(extract_patients(_series(["7/a12_3.png", "8/b12_4.png"]), r"(\d+)_")) == ["12", "12"]


def test_extract_patients__from_a_folder_if_the_pattern_has_a_slash() -> None:
    assert list(extract_patients(_series(["p7/1.png", "p8/1.png"]), r"^p(\d+)/")) == ["7", "8"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(\d+", "is not a regular expression"),
        (r"\d+", "has 0 groups"),
        (r"(a)(b)", "has 2 groups"),
        (r"person(\d+)_", "does not match 2 of 3 file names"),
    ],
)
def test_extract_patients__refuses_what_does_not_fit(pattern: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        extract_patients(_series(KERMANY), pattern)
    assert len(str(caught.value).splitlines()) <= 3
    assert "0115" not in str(caught.value)


def test_extract_patients__shows_the_form_of_a_name_without_its_content() -> None:
    with pytest.raises(SettingsError, match=r"'xx-0000-0000\.xxxx'"):
        extract_patients(_series(KERMANY), "(person)")


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        ([f"person{n // 2}_virus_{n}.jpeg" for n in range(60)], 30),
        ([f"IM-{n // 3:04}-{n:04}.jpeg" for n in range(60)], 20),
        ([f"{n // 3:08}_{n % 3:03}.png" for n in range(60)], 20),
        ([f"sub-{n // 3:02}/scan{n}.png" for n in range(60)], 20),
        ([f"person{n // 2}_virus_{n}.jpeg" if n < 60 else f"NORMAL2-IM-{n:04}-1.jpeg" for n in range(120)], 90),
    ],
)  # fmt: skip
def test_suggest_pattern__counts_patients_and_works(names: list[str], patients: int) -> None:
    suggested = suggest_pattern(_series(names))
    assert suggested is not None
    pattern, count = suggested
    assert count == patients == extract_patients(_series(names), pattern).nunique()


@pytest.mark.parametrize(
    "names", [[f"scan{n}.png" for n in range(60)], [f"img_{n}.png" for n in range(60)], ["1_2.png"]]
)
def test_suggest_pattern__nothing_if_names_have_no_patient(names: list[str]) -> None:
    assert suggest_pattern(_series(names)) is None
