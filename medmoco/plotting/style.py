"""The style of figures, and writing them as files or inside a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # labels may contain dollar signs
    "svg.fonttype": "none",  # keeps text as text, which can be searched, read aloud and enlarged
    "svg.hashsalt": "medmoco",  # so that the same figure gives the same file
}
# Verdana has the width of DejaVu Sans, which matplotlib uses to place text, and is installed on most machines.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


class ShownFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG, PNG or PDF, according to the suffix; the same figure gives the same SVG."""
    metadata = _NO_METADATA if file.suffix == ".svg" else {}
    with _quiet():
        figure.savefig(file, metadata=metadata, dpi=200)


@matplotlib.rc_context(STYLE)
def inline_svg(figure: Figure, key: str, alt: str) -> str:
    """Return a figure as an SVG element for HTML, which adapts to the available width and has alternative text.

    The page can replace a colour, in dark mode for example: #0072b2 is the variable --on-0072b2, if it is defined.

    Args:
        figure: Figure to draw.
        key: Prefix of all ids, so that they are unique within a page.
        alt: Alternative text, not escaped.
    """
    stream = io.StringIO()
    with _quiet():
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    content = stream.getvalue()
    head, _, body = content[content.index("<svg") :].partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box  # matplotlib writes it
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would apply to the whole page
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r"url\(#", f"url(#{key}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body)
    body = body.replace("font-family: 'DejaVu Sans'", f"font-family: {_FONTS}")
    body = re.sub(r"(fill|stroke): (#([0-9a-f]{6}))", r"\1: var(--on-\3, \2)", body)
    name = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<svg role="img" aria-label="{name}" {box[0]} stroke-linejoin="round">{body.strip()}'


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings about missing glyphs: text stays text, and the reader's fonts have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield
