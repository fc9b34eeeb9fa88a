from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from medmoco.errors import SettingsError
from medmoco.evaluation.leakage.ledger import LedgerEntry
from medmoco.reporting.report import ledger_section
from medmoco.reporting.report import write_report as report
from medmoco.reporting.runs import Run
from tests.helpers.made_runs import LABELS, make_run
from tests.helpers.words import missing_of, words_of

HOSTILE = '<script>alert("x")</script>'
PHONE = {"width": 390, "height": 844}
WIDTHS = (390, 820, 1440)


@pytest.fixture(scope="session")  # a worker that steals tests comes back to this file, and would make them again
def pages(
    run_folder: Path, bare_folder: Path, target_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Reports of a full run, of several of two kinds, of one with nothing, and of one whose names are an attack."""
    folder = tmp_path_factory.mktemp("reports")
    picture = folder / "patient.png"
    cv2.imwrite(str(picture), np.zeros((40, 60), np.uint8))
    attack = make_run(folder / "attack&<b>", labels=(HOSTILE, LABELS[1]))
    tuned = make_run(folder / "tuned", finetuned=True, seed=2)
    namesake = shutil.copytree(run_folder, folder / "b" / run_folder.name)
    return {
        "one": report([run_folder], folder / "one.html", pictures=[picture]),
        "several": report([run_folder, tuned, namesake], folder / "several.html", title="Three runs"),
        "bare": report([bare_folder], folder / "bare.html"),
        "targets": report([target_folder], folder / "targets.html"),
        "attack": report([attack], folder / "attack.html", title=HOSTILE),
    }


def _open(browser: Browser, file: Path, seen: list[str], **options: Any) -> Page:
    """Open a page; what it says on the console and what it asks for goes into `seen`."""
    page = browser.new_page(**{"viewport": PHONE, **options})
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: seen.append(request.url.partition(";")[0]))
    page.goto(file.as_uri())
    return page


# ---- in a browser ----


@pytest.mark.parametrize("name", ["one", "several", "bare", "attack"])
def test_report__opens_without_a_word_and_asks_for_nothing(browser: Browser, pages: dict[str, Path], name: str) -> None:
    seen: list[str] = []
    page = _open(browser, pages[name], seen)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert [line for line in seen if not line.startswith("data:")] == [pages[name].as_uri()]
    page.close()


@pytest.mark.parametrize(
    ("name", "width"),
    [*(("attack", width) for width in WIDTHS),
     *(pytest.param(name, width, marks=pytest.mark.slow)
       for name in ("one", "several", "bare", "attack") for width in (320, *WIDTHS))],
)  # fmt: skip
def test_report__is_no_wider_than_the_screen(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    page = _open(browser, pages[name], [], viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.locator("figure > svg").all()[:3]:
        box = figure.bounding_box()
        assert box
        assert 250 <= box["width"] <= width
    page.close()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("attack", "light"), ("bare", "dark"),
     *(pytest.param(name, scheme, marks=pytest.mark.slow)
       for name, scheme in (("one", "light"), ("one", "dark"), ("several", "light"), ("several", "dark")))],
)  # fmt: skip
@pytest.mark.parametrize("width", [390, pytest.param(1440, marks=pytest.mark.slow)])
def test_report__axe_finds_nothing(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    page = _open(browser, pages[name], [], color_scheme=scheme, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]] == []
    passed = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "page-has-heading-one", "html-has-lang"} <= passed
    page.close()


@pytest.mark.parametrize("name", ["one", "several", "targets"])
def test_report__a_phone_shows_the_decisive_column(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = _open(browser, pages[name], [])
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    tables = page.locator("table.decisive")
    assert tables.count() >= 5
    ends = page.evaluate(
        "[...document.querySelectorAll('.decisive tr > :nth-child(2)')].map(each => each.getBoundingClientRect().right)"
    )
    assert max(ends) <= PHONE["width"]
    page.close()


def test_report__a_dark_page_has_dark_figures(browser: Browser, pages: dict[str, Path]) -> None:
    page = _open(browser, pages["one"], [], color_scheme="dark")
    paper = "getComputedStyle(document.querySelector('figure > svg path')).fill"
    assert page.evaluate(paper) == page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()


def test_report__axe_finds_what_is_wrong(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The test above can fail."""
    broken = tmp_path / "broken.html"
    text = pages["one"].read_text().replace("--soft: #515c69", "--soft: #c0c0c0").replace(' lang="en"', "")
    broken.write_text(text.replace(' role="img" aria-label=', ' role="img" data-x='))
    page = _open(browser, broken, [])
    rules = {"color-contrast", "html-has-lang", "svg-img-alt"}
    found = Axe().run(page, options={"runOnly": sorted(rules)}).response["violations"]
    assert {fault["id"] for fault in found} == rules
    page.close()


def test_report__prints_with_everything_open_that_matters(browser: Browser, pages: dict[str, Path]) -> None:
    page = _open(browser, pages["one"], [])
    shown = "[...document.querySelectorAll('{}')].map(each => each.checkVisibility({{contentVisibilityAuto: true}}))"
    checklist = "section > details table:not(.numbers *)"
    assert not any(page.evaluate(shown.format(checklist)))  # closed on the screen
    page.emulate_media(media="print")
    # Asked again until it is so: Chromium opens what was skipped only with the next frame it draws.
    page.wait_for_function(shown.format(checklist) + ".every(Boolean)")
    assert not any(page.evaluate(shown.format("nav, .numbers")))
    document = page.pdf(format="A4")
    assert document.startswith(b"%PDF")
    assert 8 <= len(re.findall(rb"/Type\s*/Page\b", document)) <= 40
    page.close()


def test_report__keyboard_reaches_the_content_first(browser: Browser, pages: dict[str, Path]) -> None:
    page = _open(browser, pages["one"], [])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#content'")  # the browser goes there a moment after the key
    page.close()


def test_report__can_be_looked_at(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    page = _open(browser, pages["one"], [])
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    image = cv2.imread(str(tmp_path / "phone.png"))
    assert image is not None
    assert image.shape[1] == PHONE["width"]
    assert image.std() > 20  # neither blank nor all one colour
    page.close()


# ---- the file ----


class _Structure(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.mark.parametrize("name", ["one", "several", "bare", "attack"])
def test_report__holds_no_script_and_no_address(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text()
    page = _Structure(text)
    assert not page.named("script", "iframe", "object", "embed", "base", "form", "b")
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), tag
            if key in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert (value or "").startswith(("#", "data:")), (tag, value)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


@pytest.mark.parametrize("name", ["one", "several", "bare", "attack"])
def test_report__headings_figures_and_tables_are_in_order(pages: dict[str, Path], name: str) -> None:
    page = _Structure(pages[name].read_text())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    drawn = [svg for svg in page.named("svg") if svg.get("role") == "img"]
    assert len(drawn) == len(page.named("svg"))
    assert all(len(svg["aria-label"] or "") > 20 for svg in drawn)
    assert all(image["alt"] for image in page.named("img"))
    # A model card has a table without a caption, which is named where it scrolls.
    cards = sum(attributes.get("class") == "card" for attributes in page.named("div"))
    assert len(page.named("caption")) == len(page.named("table")) - cards
    assert all(cell.get("scope") in ("row", "col") for cell in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(link["href"] or "")[1:] for link in page.named("a")}
    assert links <= set(ids)


def test_report__a_plot_has_its_numbers(pages: dict[str, Path]) -> None:
    text = pages["one"].read_text()
    figures = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)
    assert len(figures) >= 15
    for figure in figures:
        assert "<details" in figure
        assert "<table" in figure
        assert "<figcaption>" in figure


def test_report__what_users_write_is_escaped(pages: dict[str, Path]) -> None:
    text = pages["attack"].read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert "attack&amp;&lt;b&gt;" in text


@pytest.mark.parametrize("name", ["one", "several", "attack"])
def test_report__names_no_place_and_no_patient(pages: dict[str, Path], run_folder: Path, name: str) -> None:
    text = pages[name].read_text()
    for secret in (str(run_folder.parent), str(pages[name].parent), "patient-", "secret-", "patient.png", "rows.csv"):
        assert secret not in text


def test_report__is_the_same_twice_and_not_large(pages: dict[str, Path], tmp_path: Path) -> None:
    again = report([pages["attack"].with_name("attack&<b>")], tmp_path / "again.html", title=HOSTILE).read_bytes()
    assert again == pages["attack"].read_bytes()
    assert len(again) < 600_000


def test_report__says_what_is_missing(pages: dict[str, Path]) -> None:
    text = pages["bare"].read_text()
    for command in ("check", "evaluate", "curve", "external", "export"):
        assert f"<code>medmoco {command}" in text


def test_report__namesakes_are_told_apart_by_the_folder_above(pages: dict[str, Path], run_folder: Path) -> None:
    text = pages["several"].read_text()
    assert "<h1>Three runs</h1>" in text
    for name in (f"{run_folder.parent.name}/{run_folder.name}", f"b/{run_folder.name}", "tuned"):
        assert f'<th scope="col">{name}</th>' in text


def test_report__a_run_given_twice(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="given twice"):
        report([run_folder, run_folder / ".." / run_folder.name], tmp_path / "page.html")


def test_report__leads_with_the_answer(pages: dict[str, Path]) -> None:
    summary = pages["one"].read_text().partition('id="label-efficiency"')[0]
    head, answer, figure, others = (
        summary.index(text)
        for text in ("<h1>Encoder pretrained on 320 images</h1>", "The pretrained encoder gains over raw pixels",
                     "<figure>", "Primary encoder minus strongest control")
    )  # fmt: skip
    assert head < answer < figure < others


def test_report__results_come_before_methods_and_what_is_missing_last(pages: dict[str, Path]) -> None:
    titles = re.findall(r'<h2 id="([\w-]+)">', pages["one"].read_text())
    assert titles == [
        "summary", "label-efficiency", "scores", "roc-precision-and-calibration-curves", "operating-points",
        "subgroups", "external-validation", "images", "test-set-evaluations", "data", "methods", "training",
        "model-card", "reporting-checklists",
    ]  # fmt: skip
    assert re.findall(r'<h2 id="([\w-]+)">', pages["bare"].read_text())[-1] == "not-in-this-report"


# ---- pictures and cards ----


def test_report__pictures_come_with_a_warning_and_only_when_given(pages: dict[str, Path]) -> None:
    assert pages["one"].read_text().count("may show patients") == 2  # at the top, and next to them
    assert "data:image/png;base64,iVBOR" in pages["one"].read_text()
    assert "<img" not in pages["several"].read_text()


def test_report__a_picture_that_is_none_is_refused(bare_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.svg"
    file.write_text("<svg onload='alert(1)'/>")
    with pytest.raises(SettingsError, match="not a PNG"):
        report([bare_folder], tmp_path / "x.html", pictures=[file])
    with pytest.raises(SettingsError, match="cannot be read"):
        report([bare_folder], tmp_path / "x.html", pictures=[tmp_path / "gone.png"])
    assert not (tmp_path / "x.html").exists()


def test_report__another_card(run_folder: Path, bare_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(bare_folder, tmp_path / "run")
    shutil.copytree(run_folder / "export", run / "export")
    card = tmp_path / "CARD.md"
    card.write_text("# Mine\n\n## Deep\n\n<img src=x onerror=alert(1)>\n")
    assert "resnet18, pretrained with medmoco" in report([run], tmp_path / "own.html").read_text()
    text = report([run], tmp_path / "x.html", card=card).read_text()
    assert "<h3>Mine</h3>" in text
    assert "<h4>Deep</h4>" in text
    assert "<img" not in text
    assert "resnet18, pretrained with medmoco" not in text


def test_report__a_folder_that_cannot_be_written(bare_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        report([bare_folder], tmp_path / "file" / "x.html")


def _rename_encoder(folder: Path, old: str, new: str) -> None:
    """Let the files of an evaluation name an encoder differently."""
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace(f'"encoder": "{old}"', f'"encoder": "{new}"'))
    file = folder / "predictions.csv"
    file.write_text(file.read_text().replace(f",{old},", f",{new},"))


def test_report__an_encoder_of_any_name_has_its_headline_and_its_place_in_the_checklists(
    run_folder: Path, tmp_path: Path
) -> None:
    """As after `medmoco evaluate --encoder mine=runs/cxr --encoder run=runs/other`."""
    renamed = shutil.copytree(run_folder, tmp_path / "cxr-1")
    _rename_encoder(renamed / "evaluation", "run", "mine")
    _rename_encoder(renamed / "evaluation", "pixels", "run")
    shutil.rmtree(renamed / "curve")
    text = report([renamed], tmp_path / "report.html").read_text()
    own, *_ = [
        r for r in json.loads((renamed / "evaluation/scores.json").read_text())
        if (r["label"], r["split"], r["method"], r["encoder"]) == ("Viral", "test", "linear", "mine")
    ]  # fmt: skip
    assert re.search("mine gains over (run|the untrained network)", text)
    checklists = text.partition("TRIPOD+AI: ")[2]
    assert f"Viral {own['auroc']:.3f} (" in checklists


def test_report__opens_with_the_gain_and_its_figure(run_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    page = report([run_folder], tmp_path / "page.html", log=said.append).read_text()
    assert said == [
        "The pretrained encoder gains over raw pixels: +0.070 (95 % interval +0.020 to +0.110). Pneumonia on"
        " the test set, with the labels of 16 patients (10 %): the linear probe has an AUROC of 0.830 on the pretrained"
        " encoder, and of 0.760 on raw pixels, the strongest control."
    ]
    assert "+0.070 <small>AUROC</small>" in page


def test_report__of_several_runs_names_the_run_of_each_gain(run_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_folder, tmp_path / "other")
    shutil.copytree(run_folder.with_name("cxr-1-check"), tmp_path / "other-check")
    said: list[str] = []
    page = report([run_folder, other], tmp_path / "page.html", log=said.append).read_text()
    for name, line in zip(("cxr-1", "other"), said, strict=False):
        assert f"The pretrained encoder of {name} gains" in line
    assert re.search(r"<h3[^>]*>cxr-1, other</h3>", page)  # the same data are described once


def test_report__without_a_curve_gives_the_scores(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/curve")
    said: list[str] = []
    report([tmp_path / "run"], log=said.append)
    assert "with the labels of all training patients" in said[0]


# ---- ledger ----


def test_ledger_section__every_test_evaluation(run: Run) -> None:
    words = words_of(ledger_section([run]))
    assert "scored 2 times" in words
    assert "2026-11-21 08:30:00 | Pneumonia 0.870; Viral 0.870 | evaluate | 200 (all)" in words


def test_ledger_section__names_scores_other_than_auroc(run: Run) -> None:
    entry = LedgerEntry(auroc={"Viral": 0.8}, r2={"Age": -0.25, "Width": None}, dice={"Lung": 0.9})
    assert "Viral 0.800; Age R2 −0.250; Width R2 –; Lung Dice 0.900" in words_of(
        ledger_section([replace(run, ledger=[entry])])
    )


@pytest.mark.parametrize("entry", [{}, {"command": "medmoco evaluate --out /srv/secret", "rows": None}])
def test_ledger_section__odd_entries_show_no_path(run: Run, entry: dict[str, Any]) -> None:
    words = words_of(ledger_section([replace(run, ledger=[LedgerEntry(**entry)])]))
    assert "scored once" in words
    assert "secret" not in words


def test_ledger_section__missing(bare_run: Run) -> None:
    assert "ledger.jsonl" in missing_of(ledger_section([bare_run]))[0]
