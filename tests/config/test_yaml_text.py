from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medmoco.config.yaml_text import dump, parse, shown
from medmoco.errors import SettingsError


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(text, "s.yaml")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}",
        "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\nd: {<<: *b}",
        "a: {<<: {x: 1}}",
        "a: {y: 1, <<: {y: 2}}",
        "a: &a [1, two, 3.0, true, null, '4']\nb: [*a, *a]",
        "a: 1e3\nb: 0x1F\nc: -0b11\nd: 1_000\ne: yes\nf: ~\ng: !!str 5\nh: +7\ni: .5\nj: 1_0.5",
        "? a\n: |\n  text\n",
        "",
        "# nothing",
    ],
)
def test_parse__reads_as_plain_pyyaml(text: str) -> None:
    expected = yaml.safe_load(text)
    if expected and expected.get("a") == "1e3":
        expected["a"] = 1000.0  # YAML 1.2, and what people mean
    assert parse(text, "s.yaml") == expected


@pytest.mark.parametrize(
    "text", ["010", "12:30", "12:30:00", "1:30.5", "2024-01-01", "2024-01-01 10:00:00", "=", "0o17"]
)
def test_parse__what_only_yaml_1_1_takes_for_a_number_or_a_date_is_text(text: str) -> None:
    assert parse(f"a: {text}", "s.yaml") == {"a": text}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: key 'a' appears twice; keep one"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "line 2: key '<<' appears twice"),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}", "line 2: key 'y' appears twice"),
        ("a: {<<: 5}", "expected a mapping or list of mappings for merging, but found scalar"),
        ("a: <<", "<< is the key that merges mappings"),
        ("\n? [1, 2]\n: 3", "line 2: a list is used as a key"),
        ("a:\n  ? {b: 1}\n  : 3", "line 2: a mapping is used as a key"),
        ("!foo 5: a", "cannot be of type '!foo'"),
        ("yes: a\n'yes': b", "line 2: key 'yes' appears twice"),
        ("a: &a [*a]", "an alias (*name) refers to something that contains it"),
        ("&a a: &b {c: *b}", "an alias (*name) refers to something that contains it"),
        ("a: *b", "found undefined alias 'b'"),
        ("a: !!python/object/apply:os.system [x]", "cannot be of type '!!python/object/apply:os.system'"),
        ("a: !foo 5", "cannot be of type '!foo'"),
        ("a: !!set {x}", "cannot be of type '!!set'"),
        ("a: !!binary aGk=", "cannot be of type '!!binary'"),
        ("a: !!timestamp 2024-01-01", "cannot be of type '!!timestamp'"),
        ("a: !!int x", "'x' cannot be read as a number"),
        ("a: !!bool x", "'x' cannot be read as true or false"),
        (f"a: {'9' * 5000}", "cannot be read as a number"),
        ("a: .nan", "'.nan' is not a finite number"),
        ("a: -.inf", "'-.inf' is not a finite number"),
        ("a: 1e400", "'1e400' is not a finite number"),
        ('a: "\\0"', "an escape (such as \\0)"),
        ('a: "\\ud800"', "an escape (such as \\0)"),
        ('a: "\\UFFFFFFFF"', "an escape stands for no character"),
        ("a: \0", "it contains the character U+0000"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML: while scanning"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: expected a single document in the stream, but found another"),
        ("[" * 5000, "nested more than 50 levels deep"),
        ("a: " + "- " * 5000, "not valid YAML"),
        ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60))]), "more values than settings"),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
            "more values than settings can have",
        ),
    ],
)  # fmt: skip
def test_parse__refuses_in_a_sentence(text: str, words: str) -> None:
    assert words in refusal(text)


def test_parse__keys_are_text_as_written() -> None:
    text = "{yes: 1, No: 0, on: x, 5: 2, 1.0: 3, ~: 4, -1: yes}"
    assert parse(text, "s.yaml") == {"yes": 1, "No": 0, "on": "x", "5": 2, "1.0": 3, "~": 4, "-1": True}
    assert parse("a: &x 5\n*x : *x", "s.yaml") == {"a": 5, "5": 5}


def test_parse__one_line_needs_no_number() -> None:
    assert refusal("[1").startswith("s.yaml: not valid YAML: ")


_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "1e5", "no", "<<"]), inner),
    max_leaves=8,
)  # fmt: skip


@given(_VALUES, st.sampled_from([None, True, False]))
def test_dump__is_read_back(value: Any, flow: bool | None) -> None:
    assert parse(dump(value, default_flow_style=flow), "s.yaml") == value


def test_shown__is_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) < 80
