"""Finish rendered pages: links to the documents that they name, and lines that break in the right places."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from docs.site import links

_NAMED = re.compile(r"\b(?:docs|manifests|dataset_processing)/[\w/]+\.md\b")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_LONG_NAME = re.compile(r"[\w./=]{20,}")
_PART_OF_NAME = re.compile(r"[/_=](?=[A-Za-z])|\.(?![a-z0-9]{1,5}\b)(?=[A-Za-z])")  # not the dot of .json
_INTERVAL = re.compile(r"\(([-+]?[\d.]+) to ([-+]?[\d.]+)\)")


def finish(site: Path) -> None:
    """Finish the pages of a folder in place."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(page(text, path.relative_to(site).as_posix()), encoding="utf-8")


def page(html: str, name: str) -> str:
    """Return a rendered page whose name is that of its file, such as "reference/api.html"."""
    return re.sub(r"<article.*</article>", lambda article: _article(article.group(), name), html, flags=re.DOTALL)


def _article(html: str, name: str) -> str:
    inside: Counter[str] = Counter()
    parts = []
    for part in re.split(r"(<[^>]+>)", html):
        tag = re.match(r"<(/?)(a|code|pre|script|style|table)\b", part)
        if tag:
            inside[tag.group(2)] += -1 if tag.group(1) else 1
        known = part.startswith("<") or inside["script"] or inside["style"]
        parts.append(part if known else _text(part, name, inside))
    return "".join(parts)


def _text(text: str, name: str, inside: Counter[str]) -> str:
    """Return text between two tags; what can be copied from code stays the same."""
    is_code = bool(inside["code"] or inside["pre"])
    if not is_code:
        text = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)
        text = _INTERVAL.sub("(\\1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}\\2)", text)
    elif not inside["pre"]:
        if inside["table"]:
            text = _LONG_NAME.sub(lambda long: _PART_OF_NAME.sub(r"\g<0><wbr>", long.group()), text)
        text = _OPTION.sub(r'<span class="option">\g<0></span>', text)
    return text if inside["a"] else _NAMED.sub(lambda named: _link(named.group(), name, is_code), text)


def _link(path: str, name: str, is_code: bool) -> str:
    """Return a link to the page that shows a document, unless it is this page."""
    shown = (links.page_of(path) or "").replace(".md", ".html")
    if shown in {"", name}:
        return path
    text = path if is_code else links.title(links.ROOT / path)
    return f'<a href="{links.relative(shown, name)}">{text}</a>'
