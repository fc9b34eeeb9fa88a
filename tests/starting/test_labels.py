"""Label columns as people have them."""

from __future__ import annotations

import pandas as pd
import pytest

from medmoco.errors import SettingsError
from medmoco.starting.labels import Labels, find_labels


def _find(chosen: list[str] | None = None, **columns: list[str]) -> Labels:
    return find_labels(pd.DataFrame(columns, dtype=str), chosen)


def test_find_labels__zeros_and_ones_stay() -> None:
    found = _find(A=["1", "0", "-1", ""] * 3, B=["1.0", "0.0", "0.0", "0.0"] * 3)
    assert found.cells["A"].tolist() == ["1", "0", "-1", ""] * 3
    assert found.cells["B"].tolist() == ["1", "0", "0", "0"] * 3


def test_find_labels__words() -> None:
    found = _find(A=["Yes", "no", "", "n/a"] * 3, B=["Positive", "Negative", "negative", "uncertain"] * 3)
    assert found.cells["A"].tolist() == ["1", "0", "", ""] * 3
    assert found.cells["B"].tolist() == ["1", "0", "0", "-1"] * 3
    assert found.notes[0] == "labels in words (yes = 1, no = 0): 'A'"


def test_find_labels__lists() -> None:
    found = _find(**{"Finding Labels": ["Mass|Nodule", "No Finding", "Mass", "Nodule|Mass", ""] * 3})
    assert list(found.cells) == ["Mass", "No Finding", "Nodule"]
    assert found.cells["Mass"].tolist() == ["1", "0", "1", "1", ""] * 3


def test_find_labels__classes_only_without_other_labels() -> None:
    classes = ["CNV", "DME", "DRUSEN", "NORMAL"] * 3
    assert list(_find(Disease=classes).cells) == ["CNV", "DME", "DRUSEN", "NORMAL"]
    found = _find(Disease=classes, A=["1", "0", "0", "1"] * 3)
    assert list(found.cells) == ["A"]
    assert found.notes[-1] == "not used as labels: 'Disease'; choose with --labels"


def test_find_labels__grades() -> None:
    assert list(_find(diagnosis=["0", "2", "1", "4", "3"] * 4).cells) == [f"diagnosis {grade}" for grade in range(5)]


def test_find_labels__ignores_metadata_free_text_numbers_and_constants() -> None:
    rows = 12
    found = _find(
        Manufacturer=["GE", "Siemens"] * 6,
        Report=[f"text {number}" for number in range(rows)],
        Dose=[f"{number}.5" for number in range(rows)],
        Constant=["1"] * rows,
        **{"Patient Gender": ["M", "F"] * 6},
    )
    assert found.cells.empty


def test_find_labels__chosen_columns_and_classes() -> None:
    table = {"Disease": ["CNV", "DME", "NORMAL"] * 4, "A": ["1", "0", "0"] * 4}
    assert list(_find(["Disease"], **table).cells) == ["CNV", "DME", "NORMAL"]
    assert list(_find(["DME"], **table).cells) == ["DME"]


def test_find_labels__a_class_does_not_take_the_name_of_a_column() -> None:
    found = _find(["Kind"], Kind=["Sex", "A", "B"] * 4, A=["x"] * 12)
    assert list(found.cells) == ["Kind A", "B", "Kind Sex"]


def test_find_labels__refuses_unknown_and_unreadable_columns() -> None:
    table = {"Disease": ["CNV", "DME", "NORMAL"] * 4, "Report": [f"text {n}" for n in range(12)]}
    with pytest.raises(SettingsError, match="did you mean 'Disease'"):
        _find(["disease"], **table)
    with pytest.raises(SettingsError, match="12 different values"):
        _find(["Report"], **table)
