from __future__ import annotations

from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from docs.site import pictures


def test_views__are_drawn(tmp_path: Path) -> None:
    pictures.draw_views(tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > 2 * picture.height
        assert len(picture.convert("L").getcolors() or ()) > 100


def test_reports__are_photographed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<body style='margin: 0; background: #123456'>")
    pictures.photograph(browser, page, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1280, 960)
        assert picture.convert("RGB").getpixel((640, 480)) == (0x12, 0x34, 0x56)
