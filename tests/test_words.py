"""Texts are plain, idiomatic English: no phrase of tests/helpers/banned_phrases.txt in documents, settings or code.

A phrase is a regular expression, one a line, matched whatever its case and wherever its lines break.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    "|".join(f"(?:{line})" for line in (Path(__file__).parent / "helpers/banned_phrases.txt").read_text().splitlines()),
    re.IGNORECASE,
)
TEXTS = ("*.md", "docs/**/*.md", "manifests/**/*.md", "configs/**/*.y*ml", "examples/**/*.*", "medmoco/**/*.py",
         "dataset_processing/**/*.py", "dataset_processing/**/*.md", "benchmarks/**/*.md", "Makefile", "Dockerfile",
         "apptainer.def", ".github/**/*.*")  # fmt: skip
EXEMPT = ("CHANGELOG.md",)
"""The history, which is not rewritten."""


def _phrases(text: str) -> list[str]:
    """Return the banned phrases in a text, of which a line break may part string literals, comments or sentences."""
    joined = re.sub(r'"\s*\n\s*[fr]*"', "", text)
    return [match[0] for match in BANNED.finditer(re.sub(r"\s*\n[\s#>]*", " ", joined))]


def _files() -> list[str]:
    files = {file.relative_to(ROOT).as_posix() for pattern in TEXTS for file in ROOT.glob(pattern) if file.is_file()}
    return sorted(file for file in files if file not in EXEMPT)


@pytest.mark.parametrize("file", _files())
def test_texts__have_no_banned_phrase(file: str) -> None:
    found = _phrases((ROOT / file).read_text(encoding="utf-8", errors="ignore"))
    assert not found, f"{file} reads as if translated: {', '.join(map(repr, dict.fromkeys(found)))}; reword it"


@pytest.mark.parametrize(
    "text",
    [
        "trained From Nothing",
        "the caller is told\n    of it",
        'raise X("it goes on "\n        f"from {step}")',
        "# a run that\n    # looks at test",
    ],
)
def test_phrases__are_found_across_lines(text: str) -> None:
    assert len(_phrases(text)) == 1


def test_phrases__plain_english_has_none() -> None:
    assert _phrases("Train from scratch, resume the run, and evaluate on the test set.") == []
    assert "README.md" in _files()
