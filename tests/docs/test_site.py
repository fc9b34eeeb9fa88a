"""The site: every page can be reached, generated pages are complete, and broken links are refused."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

import medmoco
from docs.site import build, links, notebooks, settings
from medmoco.config import RunSettings
from medmoco.config.base import Settings
from tests.docs.test_notebooks import outputs
from tests.test_project import PUBLIC

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built in strict mode; its notebooks are not executed, but show a table and lines."""

    def run(notebook: nbformat.NotebookNode, _folder: Path) -> None:
        next(cell for cell in notebook.cells if cell.cell_type == "code").outputs = outputs()

    folder = tmp_path_factory.mktemp("site") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "run", run)
        build.build(folder)
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


def test_navigation__shows_the_titles_of_pages(pages: Path, site: Path) -> None:
    labels = re.findall(r'"([^"]+)" = "[^"]+\.md"', (ROOT / "zensical.toml").read_text())
    assert labels == ["Home"]
    titles = [links.title(path) for path in pages.rglob("*.md") if path.name != "index.md"]
    assert len(set(titles)) == len(titles)
    shown = {" ".join(text.split()) for text in re.findall(r">([^<>]+)<", (site / "check.html").read_text())}
    assert set(titles) <= shown


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
    assert described["train.clip_norm"][0] == "number, above 0, or `null`"
    assert described["data.band_ranges"][0] == "list of pairs of numbers or `null`"
    assert described["data.join"][0] == "mapping with the keys `file` and `on` (and optionally `columns`), or `null`"
    assert described["data.labels"][0].startswith("mapping of names to mappings with any of the keys `uncertain`, ")
    assert described["data.max_pixels"][1] == "default `100_000_000`"
    assert described["views.crop_ratio"][:2] == (
        "pair of numbers, each above 0", "default `[0.75, 1.333]`; by `views.recipe`: `moco_cxr` `[1.0, 1.0]`",
    )  # fmt: skip
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
    assert "```text\nmedmoco prepare [OPTIONS] {name}\n```" in text  # without a prompt, which would be copied
    assert re.search(r"```text\nchexpert  .+\n(.+\n){12}```\n", text)
    assert "[default: medmoco.yaml]" in text
    assert not re.search(r"\x08|^\$|\[default: \(", text, flags=re.MULTILINE)


def test_api__describes_every_public_name() -> None:
    named = re.findall(r"^::: medmoco\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), flags=re.MULTILINE)
    assert sorted([*named, "MedmocoError"]) == sorted([*PUBLIC, "errors"])
    assert medmoco.MedmocoError.__module__ == "medmoco.errors"


def test_api__hides_private_bases(site: Path) -> None:
    assert "Bases:" not in (site / "reference/api.html").read_text()


def test_generated_pages__link_the_documents_that_they_name(site: Path) -> None:
    expected = {
        "reference/api.html": '<a href="../import.html">Start from existing weights</a>',
        "reference/configs.html": '<a href="../oct.html">docs/oct.md</a>',
        "reference/settings.html": '<a href="manifests.html">Manifests</a>',
    }
    for name, link in expected.items():
        text = (site / name).read_text(encoding="utf-8")
        assert link in text
        assert not re.search(r"(docs|manifests)/\w+\.md", re.sub(r"<a .*?</a>|<[^>]+>", "", text, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("link", "page", "source", "expected"),
    [
        ("[statistics.md](statistics.md)", "check.md", "docs/check.md", "[Statistics](statistics.md)"),
        ("[docs](docs/check.md#cost)", "index.md", "README.md", "[docs](check.md#cost)"),
        ("![films](docs/views.png)", "index.md", "README.md", "![films](views.png)"),
        ('<img src="docs/report.png" alt="">', "index.md", "README.md", '<img src="report.png" alt="">'),
        ("[here](../docs/use.md)", "tutorials/a.md", "examples/a.ipynb", "[here](../use.md)"),
        ("[sets](../dataset_processing)", "reference/m.md", "manifests/README.md", "[sets](../guides/datasets.md)"),
        ("[tutorial](examples/fundus.ipynb)", "index.md", "README.md", "[tutorial](tutorials/fundus.md)"),
        ("[licence](LICENSE)", "index.md", "README.md", "licence"),
        ("[gone](gone.md)", "check.md", "docs/check.md", "[gone](gone.md)"),
        ("[web](https://pytorch.org)", "check.md", "docs/check.md", "[web](https://pytorch.org)"),
    ],
)
def test_links__lead_to_where_the_site_shows_a_file(link: str, page: str, source: str, expected: str) -> None:
    assert links.with_links(link, page, source) == expected


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


BROKEN = """() => [...document.querySelectorAll("td code")].flatMap(code => {
    const words = document.createTreeWalker(code, NodeFilter.SHOW_TEXT), broken = [];
    while (words.nextNode())
        for (const word of words.currentNode.data.matchAll(/[A-Za-z0-9]+/g)) {
            const range = document.createRange();
            range.setStart(words.currentNode, word.index);
            range.setEnd(words.currentNode, word.index + word[0].length);
            if (range.getClientRects().length > 1) broken.push(code.textContent);
        }
    return broken;
})"""
"""The code in tables with a word that continues on the next line."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_pages__words_in_tables_are_whole_and_code_fits_a_desktop(site: Path, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    cut = "[...document.querySelectorAll('.highlight code')].filter(code => code.scrollWidth > code.clientWidth).length"
    faults = []
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        faults += [f"{file.name}: {code}" for code in page.evaluate(BROKEN)]
        faults += [f"{file.name} cuts code"] if width == 1440 and page.evaluate(cut) else []
    page.close()
    assert not faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tables__a_shadow_shows_that_they_continue(site: Path, browser: Browser, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto((site / "results.html").as_uri())
    area = page.locator(".md-typeset__scrollwrap").first
    assert area.evaluate("area => area.scrollWidth > area.clientWidth")
    assert area.evaluate("area => getComputedStyle(area).backgroundImage.match(/linear-gradient/g).length") == 4
    assert area.locator("table").evaluate("table => getComputedStyle(table).backgroundColor") == "rgba(0, 0, 0, 0)"
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "start", "results", "batch_norm"])
def test_pages__axe_finds_nothing(site: Path, browser: Browser, name: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page.goto((site / f"{name}.html").as_uri())
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    page.close()
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found if fault["id"] not in THEME] == []
