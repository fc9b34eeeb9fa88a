"""Figures become files and elements of a page that need nothing else."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from medmoco.plotting.figures import Line, line_figure
from medmoco.plotting.style import inline_svg, save

LINES = [Line("a", [0.0, 0.5, 1.0], [0.1, 0.7, 1.0]), Line("b", [0.0, 1.0], [0.0, 1.0], [0, 0.9], [0.1, 1], 1)]


def drawn() -> Figure:
    return line_figure(LINES, x="step", y="loss", reference=6.9, named="chance")


def test_inline_svg__ids_of_two_figures_differ_and_all_are_found() -> None:
    svgs = [inline_svg(drawn(), key, "alt") for key in ("one", "two")]
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in svgs]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svgs[0]))
    assert used
    assert used <= ids[0]


def test_inline_svg__needs_nothing_from_elsewhere() -> None:
    svg = inline_svg(drawn(), "k", "alt")
    assert "http" not in svg
    assert "<style" not in svg
    assert "<text" in svg


def test_inline_svg__what_users_write_is_escaped() -> None:
    hostile = '<script>alert(1)</script>&"$x^2$'
    svg = inline_svg(line_figure([Line(hostile[:30], [0, 1], [0, 1])], x=hostile, y="_y"), "k", hostile)
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == hostile
    assert hostile in {"".join(element.itertext()).strip() for element in root.iter("text")}


def test_save__svg_is_reproducible_and_png_has_pixels(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        save(drawn(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 800
        assert len(image.convert("L").getcolors() or []) > 2


def test_save__other_warnings_still_come_through(tmp_path: Path) -> None:
    class Loud(Figure):
        def draw(self, renderer: Any) -> None:
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        save(Loud(), tmp_path / "x.png")
