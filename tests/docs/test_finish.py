"""Rendered pages: documents that they name become links, and lines break in the right places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.site import finish


def _finished(html: str, name: str = "check.html") -> str:
    return finish.page(f"<title>docs/oct.md</title><article>{html}</article>", name)[
        len("<title>docs/oct.md</title>") :
    ]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>0.9 (0.910 to 0.956)</p>", "<p>0.9 (0.910~to~0.956)</p>"),
        ("<td>(-0.004 to +0.047), 95 % interval</td>", "<td>(-0.004~to~+0.047), 95~% interval</td>"),
        ("<p>(two to three)</p>", "<p>(two to three)</p>"),
        ("<pre><code>(0.910 to 0.956) 95 %</code></pre>", "<pre><code>(0.910 to 0.956) 95 %</code></pre>"),
        ("<p><code>(0.910 to 0.956)</code></p>", "<p><code>(0.910 to 0.956)</code></p>"),
    ],
)
def test_intervals__stay_on_one_line(html: str, expected: str) -> None:
    assert _finished(html) == f"<article>{expected.replace('~', chr(0xA0))}</article>"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("evaluation/curve_differences.json", "evaluation/<wbr>curve_<wbr>differences.json"),
        ("method.negatives=other_patients", "method.<wbr>negatives=<wbr>other_<wbr>patients"),
        ("encoder.safetensors in exported", "encoder.safetensors in exported"),
        ("exported/encoder.safetensors", "exported/<wbr>encoder.<wbr>safetensors"),
        ("x --merge-duplicates", 'x <span class="option">--merge-duplicates</span>'),
        ("a--b", "a--b"),
    ],
)
def test_names_in_tables__break_between_words_only(code: str, expected: str) -> None:
    finished = _finished(f"<table><td><code>{code}</code></td></table>")
    assert finished == f"<article><table><td><code>{expected}</code></td></table></article>"
    assert re.sub("<[^>]+>", "", finished) == code  # what is copied from it


def test_names_in_prose__get_no_breaks() -> None:
    html = "<p><code>evaluation/curve_differences.json</code></p>"
    assert _finished(html) == f"<article>{html}</article>"


@pytest.mark.parametrize(
    ("html", "name", "expected"),
    [
        ("see docs/statistics.md.", "check.html", 'see <a href="statistics.html">Statistics</a>.'),
        ("(docs/statistics.md)", "reference/api.html", '(<a href="../statistics.html">Statistics</a>)'),
        ("manifests/README.md", "a.html", '<a href="reference/manifests.html">Manifests</a>'),
        ("<pre># docs/check.md", "a.html", '<pre># <a href="check.html">docs/check.md</a>'),
        ("<pre># docs/check.md", "check.html", "<pre># docs/check.md"),
        ('<a href="x">docs/check.md</a>', "a.html", '<a href="x">docs/check.md</a>'),
        ("docs/nothing.md", "a.html", "docs/nothing.md"),
    ],
)
def test_documents__are_linked(html: str, name: str, expected: str) -> None:
    assert _finished(html, name) == f"<article>{expected}</article>"


def test_folder__every_page_is_finished(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference/api.html").write_text("<article>95 %, docs/oct.md</article>")
    finish.finish(tmp_path)
    text = (tmp_path / "reference/api.html").read_text(encoding="utf-8")
    assert text.startswith('<article>95\N{NO-BREAK SPACE}%, <a href="../oct.html">')
