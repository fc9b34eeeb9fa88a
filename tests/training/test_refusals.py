from __future__ import annotations

import pytest

from medmoco.errors import CheckpointError, ManifestError, MedmocoError, SettingsError
from medmoco.training.refusals import Refusals


def text_of(*errors: MedmocoError) -> str:
    refusals = Refusals()
    for error in errors:
        with refusals.collecting():
            raise error
    with pytest.raises(type(errors[0])) as caught:
        refusals.refuse()
    return str(caught.value)


FILES = ManifestError("5 files are missing (rows 2, 3, ...);\ncheck data.root")
WORKERS = SettingsError("data.workers 9 needs more memory\n(18 batches).\nSet data.workers=1.", {"data.workers": 1})
BATCH = SettingsError("the batch is too large:\nlower it", {"train.global_batch_size": 32})


def test_refuse__nothing() -> None:
    Refusals().refuse()
    assert not Refusals()


def test_refuse__one_is_raised_as_it_is() -> None:
    assert text_of(WORKERS) == str(WORKERS)


def test_refuse__several_end_with_what_can_be_pasted() -> None:
    assert text_of(WORKERS, BATCH, WORKERS).splitlines() == [
        "data.workers 9 needs more memory",
        "the batch is too large",
        "Set data.workers=1 train.global_batch_size=32",
    ]


def test_refuse__an_error_without_settings_keeps_its_remedy_where_there_is_room() -> None:
    assert text_of(FILES, BATCH).splitlines()[:2] == str(FILES).splitlines()
    others = [SettingsError(str(number)) for number in range(3)]
    assert text_of(FILES, *others).splitlines() == [*str(FILES).splitlines(), "0", "1", "2"]
    assert text_of(FILES, BATCH, *others[:2]).splitlines()[0] == "5 files are missing (rows 2, 3, ...)"


def test_refuse__five_lines_at_most() -> None:
    others = [SettingsError(str(number)) for number in range(6)]
    assert text_of(CheckpointError("first"), *others).splitlines() == ["first", "0", "1", "2", "and 3 more"]
    assert text_of(BATCH, *others).splitlines()[-2:] == ["and 4 more", "Set train.global_batch_size=32"]


def test_refuse__the_class_can_be_raised_by_other_processes() -> None:
    for first in (WORKERS, FILES):
        refusals = Refusals()
        refusals.add(first, BATCH)
        with pytest.raises(MedmocoError) as caught:
            refusals.refuse()
        assert type(caught.value) is type(first)
