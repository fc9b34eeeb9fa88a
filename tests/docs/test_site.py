"""The site: every page can be reached, generated pages are complete, and broken links are refused."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

import medmoco
from docs.site import build, settings
from medmoco.config import RunSettings
from medmoco.config.base import Settings
from tests.test_project import PUBLIC

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built in strict mode, with notebooks that were not executed."""
    folder = tmp_path_factory.mktemp("site") / "site"
    build.build(folder, execute=False)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of Markdown that the site is built from."""
    folder = tmp_path_factory.mktemp("pages")
    build.collect(folder, execute=False)
    return folder


def _in_navigation(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from _in_navigation(part)


def test_navigation__has_every_page_once(pages: Path) -> None:
    listed = [*_in_navigation(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])]
    assert sorted(listed) == sorted(path.relative_to(pages).as_posix() for path in pages.rglob("*.md"))


def test_site__is_built_without_warnings_and_needs_no_other_server(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "Many images, few labels?" in index
    assert (site / "report.png").is_file()
    from_elsewhere = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(?:https?:)?//")
    assert not [page.name for page in site.rglob("*.html") if from_elsewhere.search(page.read_text(encoding="utf-8"))]


def test_site__a_broken_link_or_anchor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(folder: Path, *, execute: bool) -> None:
        folder.mkdir()
        (folder / "index.md").write_text("# Home\n\n[there](there.md) and [here](#nowhere)\n")

    monkeypatch.setattr(build, "collect", collect)
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def _settings(model: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_settings__every_one_has_type_default_and_effect(pages: Path) -> None:
    entries = re.findall(r"^### (\S+)\n\n(.+) · (.+)\n\{ \.kind \}\n\n(.+)$", settings.markdown(), flags=re.MULTILINE)
    assert sorted(entry[0] for entry in entries) == sorted(_settings(RunSettings))
    described = {name: (kind, default, effect) for name, kind, default, effect in entries}
    assert described["out"][:2] == ("path", "required")
    assert described["train.epochs"][:2] == ("integer, at least 1", "default `200`")
    assert described["train.optimizer"][0] == "`sgd`, `adamw` or `lars`"
    assert described["train.clip_norm"][0] == "number, above 0 or `null`"
    assert described["method.temperature"][1] == (
        "default `0.2`; by `method.name`: `moco_v1` `0.07`, `moco_v2` `0.2`, `moco_v3` `0.2`"
    )
    assert "*Source: He et al. 2020.*" in settings.markdown()


def test_commands__are_all_described(pages: Path) -> None:
    import typer

    from medmoco.cli import app

    group: Any = typer.main.get_command(app)
    text = (pages / "reference/commands.md").read_text()
    assert set(re.findall(r"^## `medmoco (\w+)`", text, flags=re.MULTILINE)) == set(group.commands)


def test_api__describes_every_public_name() -> None:
    named = re.findall(r"^::: medmoco\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), flags=re.MULTILINE)
    assert sorted([*named, "MedmocoError"]) == sorted([*PUBLIC, "errors"])
    assert medmoco.MedmocoError.__module__ == "medmoco.errors"


@pytest.mark.parametrize(
    ("link", "page", "source", "expected"),
    [
        ("[statistics.md](statistics.md)", "check.md", "docs/check.md", "[Statistics](statistics.md)"),
        ("[docs](docs/check.md#cost)", "index.md", "README.md", "[docs](check.md#cost)"),
        ("![films](docs/views.png)", "index.md", "README.md", "![films](views.png)"),
        ("[here](../docs/use.md)", "tutorials/a.md", "examples/a.ipynb", "[here](../use.md)"),
        ("[sets](../dataset_processing)", "reference/m.md", "manifests/README.md", "[sets](../guides/datasets.md)"),
        ("[tutorial](examples/fundus.ipynb)", "index.md", "README.md", "[tutorial](tutorials/fundus.md)"),
        ("[licence](LICENSE)", "index.md", "README.md", "licence"),
        ("[gone](gone.md)", "check.md", "docs/check.md", "[gone](gone.md)"),
        ("[web](https://pytorch.org)", "check.md", "docs/check.md", "[web](https://pytorch.org)"),
    ],
)
def test_links__lead_to_where_the_site_shows_a_file(link: str, page: str, source: str, expected: str) -> None:
    assert build._with_links(link, page, source) == expected


# ---- in a browser ----

THEME = {"landmark-unique", "scrollable-region-focusable"}
"""Rules that the theme breaks: buttons of code blocks, and tables that scroll, which browsers focus by themselves."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_pages__fit_the_screen(site: Path, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    too_wide = []
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(file.name)
    page.close()
    assert not too_wide


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "start", "results", "batch_norm"])
def test_pages__axe_finds_nothing(site: Path, browser: Browser, name: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page.goto((site / f"{name}.html").as_uri())
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    page.close()
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found if fault["id"] not in THEME] == []
