from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from medmoco.data.manifest.csv_file import read_csv
from medmoco.data.manifest.tables.json_lines import is_json_lines
from medmoco.errors import ManifestError


def refusal(tmp_path: Path, text: str) -> str:
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read_csv(tmp_path / "train.jsonl")
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    return message.partition("train.jsonl: ")[2]


def test_read_json_lines__values_become_cells(tmp_path: Path) -> None:
    text = (
        '\ufeff{"Path": "\u00e9.png", " PatientID ": "012 ", "A": true, "x": 1.50}\r\n\n'
        '{"A": false, "x": -3e5, "new": "a\\nb", " PatientID ": 12}\n{"Path": null, "x": NaN}'
    )
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    file = read_csv(tmp_path / "train.jsonl", ["A"])
    assert file.rows.tolist() == [1, 3, 4]
    assert file.table.to_dict("list") == {
        "Path": ["\u00e9.png", "", ""], "PatientID": ["012", "12", ""], "A": ["1", "0", ""],
        "x": ["1.50", "-3e5", ""], "new": ["", "a\nb", ""],
    }  # fmt: skip
    assert file.table["A"].dtype == "category"
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read_csv(tmp_path / "t.jsonl.gz").table["x"].tolist() == ["1.50", "-3e5", ""]


def test_is_json_lines__by_name() -> None:
    names = ["a.jsonl", "A.JSONL.gz", "a.ndjson", "a.json", "a.csv", "jsonl"]
    assert [is_json_lines(Path(name)) for name in names] == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"Path": "a"}\n\n{"Path": "b"', "line 3 is not JSON; each line must be an object such as"),
        ('[{"Path": "a"}]', "line 1 is not an object"),
        ("[]", "line 1 is not an object"),
        ('"a"', "line 1 is not an object"),
        ('{"Path": "a"}\n{"A": [1]}', "line 2: the value of 'A' is a list or an object"),
        ('{"A": {"b": 1}}', "line 1: the value of 'A' is a list or an object"),
        ('{"A": []}', "line 1: the value of 'A' is a list or an object"),
        ('{"A": 1, "B": 2, "A": 1}', "line 1: the name 'A' appears twice"),
        ('{"A": 1}\n{"A ": 2}', "differ only in surrounding spaces"),
        ('{"": 1}', "a name is blank"),
        ('{"A": "x"}\n{"A": "\\ud800"}', "line 2: an escape"),
        ('{"A": "\\u0000"}', "line 1: an escape"),
        ('{"\\uDfff": "x"}', "a name contains an escape"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_read_json_lines__refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)
