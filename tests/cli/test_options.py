from __future__ import annotations

import pytest

from medmoco.cli.options import named, row_numbers, split_name
from medmoco.errors import SettingsError


def test_named__the_first_needs_no_name() -> None:
    assert named(["runs/a", "b=runs/b=1"]) == {"run": "runs/a", "b": "runs/b=1"}


@pytest.mark.parametrize(
    ("encoders", "words"), [(["a", "b"], "--encoder other=b"), (["x=a", "x=b"], "two are named 'x'")]
)
def test_named__others_need_names_of_their_own(encoders: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        named(encoders)


def test_row_numbers__are_whole() -> None:
    assert row_numbers("3, 17") == [3, 17]
    with pytest.raises(SettingsError, match="'3;7' is not a list"):
        row_numbers("3;7")


def test_split_name__is_one_of_three() -> None:
    assert split_name("val") == "val"
    with pytest.raises(SettingsError, match="'valid' is no split"):
        split_name("valid")
