from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoco import config
from medmoco.config.paths import as_written, expand, to_path
from tests.helpers.written import MINIMAL, refusal, write

PATHS = ("out", "data.manifest", "data.root", "data.pack", "data.pack_cache", "model.init", "detection.boxes")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/$x")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", "/users/ada"),
        ("~/a", "/users/ada/a"),
        ("a~/~b", "a~/~b"),
        ("./~/a", "./~/a"),
        ("$SCRATCH/a", "/scratch/$x/a"),
        ("${SCRATCH}a", "/scratch/$xa"),
        ("~/$SCRATCH", "/users/ada//scratch/$x"),
        ("a/$$SCRATCH", "a/$SCRATCH"),
        ("a$", "a$"),
        ("$1/a$-b", "$1/a$-b"),
        ("/data/{split}", "/data/{split}"),
        ("s3://bucket/$SCRATCH/~", "s3://bucket/$SCRATCH/~"),
    ],
)
def test_expand__reads_as_a_shell_does(text: str, expected: str) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$NOWHERE/a", "the environment variable NOWHERE is not set"),
        ("$EMPTY/a", "the environment variable EMPTY is not set"),
        ("/data/${split}", "the environment variable split is not set"),
        ("${SCRATCH:-/tmp}", "must contain the name of a variable"),
        ("${", "must contain the name of a variable"),
        ("~nobody-has-this-name/a", "is not a user with a home folder"),
        ("~$SCRATCH", "is not a user with a home folder"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
    ],
)
def test_expand__refuses(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expand(text)


def test_to_path__a_url_is_not_a_folder_called_s3() -> None:
    with pytest.raises(ValueError, match=r"only data\.pack can be a URL"):
        to_path("s3://bucket/a")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_as_written__is_expanded_to_the_same(text: str) -> None:
    assert expand(as_written(text)) == text or (text.startswith("~") and expand(as_written(text)) == f"./{text}")


@pytest.mark.parametrize("key", PATHS)
def test_load__every_setting_that_is_a_path(tmp_path: Path, key: str) -> None:
    settings = config.load(write(tmp_path, MINIMAL), [f"{key}=~/a"])
    assert dict(config.flatten(config.as_tree(settings)))[key] == "/users/ada/a"
    assert f"'{key}': '$NOWHERE': the environment variable NOWHERE" in refusal(tmp_path, MINIMAL, f"{key}=$NOWHERE")
    assert f"'{key}': 5 is not a path" in refusal(tmp_path, MINIMAL, f"{key}=5")


def test_load__a_saved_path_stays_what_it_is(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL), ["out=./~x", "data.root=$$NOWHERE", "data.pack=$SCRATCH"])
    assert (settings.out, settings.data.root, settings.data.pack) == (Path("~x"), "$NOWHERE", "/scratch/$x")
    assert config.load(write(tmp_path, config.to_yaml(config.as_tree(settings)))) == settings
