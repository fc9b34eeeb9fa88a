from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

import medmoco
from docs.site import pictures

OLD = Path(__file__).parents[1] / "compatibility/old/run"


def test_views__are_drawn(tmp_path: Path) -> None:
    pictures.draw_views(tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > 2 * picture.height
        assert len(picture.convert("L").getcolors() or ()) > 100


@pytest.mark.slow
def test_reports__the_answer_and_its_figure_are_photographed(browser: Browser, tmp_path: Path) -> None:
    medmoco.report(OLD, tmp_path / "report.html")
    pictures.photograph(browser, tmp_path / "report.html", tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width == 2 * 448  # as README.md shows it
        assert 1200 < picture.height < 1700  # no more than these two
        box, left = picture.convert("RGB").getpixel((800, 100)), picture.convert("RGB").getpixel((4, 100))
    assert box == (0xF4, 0xF6, 0xF8)  # no clear difference
    assert left == (0xFF, 0xFF, 0xFF)


def test_readme__shows_the_photograph_at_its_size() -> None:
    for page in ("../../README.md", "../../docs/report.md"):
        assert 'report.png" width="448"' in (Path(__file__).parent / page).read_text(encoding="utf-8")
