"""Make the pictures of the documentation that are not part of a tutorial; nothing in them is of a patient.

medmoco demo && python -m docs.site.pictures demo/run/report.html
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import medmoco

DOCS = Path(__file__).parents[1]


def draw_views(out: Path) -> None:
    """Draw synthetic chest phantoms and their training views."""
    with tempfile.TemporaryDirectory() as name:
        medmoco.phantom(name, patients=8, image_size=256, formats=["png"], workers=1)
        config = {"out": "run", "data": {"manifest": name, "root": f"{name}/{{split}}"}, "views": {"size": 160}}
        medmoco.preview(config, out, images=3, views=6)


def photograph(browser: Browser, page: Path, out: Path) -> None:
    """Draw the answer of a report and the figure below it, as on a phone, sharp enough for any screen."""
    screen = browser.new_page(viewport={"width": 480, "height": 960}, device_scale_factor=2, color_scheme="light")
    screen.goto(page.resolve().as_uri())
    screen.add_style_tag(content="main > section > .group { padding: 0 1rem; } details { display: none; }")
    screen.locator("main > section > .group").first.screenshot(path=out)
    screen.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("report", type=Path, help="report of the demo, whose films are public")
    report = parser.parse_args().report
    draw_views(DOCS / "views.png")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        photograph(chromium, report, DOCS / "report.png")
