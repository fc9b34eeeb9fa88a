"""`medmoco report`: a self-contained HTML file about one or several runs, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as counter
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from medmoco.data.manifest.row_filter import where_words
from medmoco.errors import SettingsError
from medmoco.evaluation.leakage.ledger import LedgerEntry
from medmoco.plotting.style import inline_svg
from medmoco.reporting.appendix import appendix_section
from medmoco.reporting.blocks import (
    NO_BREAK,
    NOTHING,
    Block,
    Fold,
    Html,
    Picture,
    Section,
    Table,
    Text,
    by_run,
    count,
    number,
)
from medmoco.reporting.curves import curve_section, curves_section, external_section
from medmoco.reporting.runs import Run, missing, read_run, run_names
from medmoco.reporting.scores import operating_section, scores_section, subgroups_section
from medmoco.reporting.summary import headlines, subtitle_of, summary, title_of
from medmoco.reporting.targets import targets_section
from medmoco.reporting.trained.scores import trained_section
from medmoco.reporting.training import data_section, methods_section, training_section
from medmoco.utils.files import PathLike, replacing

_PNG = b"\x89PNG\r\n\x1a\n"


def write_report(
    folders: Sequence[Path],
    out: PathLike | None = None,
    *,
    card: PathLike | None = None,
    pictures: Sequence[PathLike] = (),
    images: Mapping[str, PathLike] | None = None,
    title: str = "",
    log: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page of `medmoco.report`, which describes arguments, errors and the result.

    Here, `images` are PNG files by their captions; they are shown before `pictures`.
    """
    out = Path(out) if out else folders[0] / "report.html"
    own_card = Path(card) if card else None
    read = [
        replace(read_run(folder, own_card if at == 0 else None), name=name)
        for at, (folder, name) in enumerate(zip(folders, run_names(folders), strict=True))
    ]
    shown = _pictures(
        [*((Path(file), text) for text, file in (images or {}).items()), *((Path(f), "") for f in pictures)]
    )
    head = Head(title or title_of(read), subtitle_of(read), summary(read), has_pictures=bool(shown))
    page = render(head, _sections(read, shown))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    for line in headlines(read):
        log(line)
    return out


def _sections(runs: Sequence[Run], pictures: Sequence[Section]) -> list[Section]:
    """Return the results, the images, and how the runs were made; what is missing comes last."""
    results = (
        curve_section, trained_section, scores_section, targets_section, curves_section, operating_section,
        subgroups_section, external_section,
    )  # fmt: skip
    making = ledger_section, data_section, methods_section, training_section, _cards, appendix_section
    sections = [*(part(runs) for part in results), *pictures, *(part(runs) for part in making)]
    lacking = [section.blocks for section in sections if _is_missing(section)]
    present = [section for section in sections if not _is_missing(section)]
    words = [block for blocks in lacking for block in blocks]
    return [*present, Section("Not in this report", words)] if words else present


def _is_missing(section: Section) -> bool:
    """Return whether a section only names the commands that would fill it."""
    return not section.sections and all(isinstance(block, Text) and block.kind == "missing" for block in section.blocks)


def ledger_section(runs: Sequence[Run]) -> Section:
    """Show every evaluation on the test set."""
    words = "{run} has no ledger: `medmoco evaluate` adds a line to ledger.jsonl each time it scores a test split."
    blocks = missing(runs, lambda run: run.ledger is None, words)
    for run in runs:
        if run.ledger is None:
            continue
        times = "once" if len(run.ledger) == 1 else f"{len(run.ledger):,} times"
        words = "Test scores become optimistic if choices are based on them."
        blocks.append(Text(f"{run.name}: the test split was scored {times}. {words}"))
        cells = [_ledger_cells(entry) for entry in run.ledger]
        blocks.append(
            Table(
                f"Test-set evaluations, {run.name}",
                ["time (UTC)", "score (AUROC unless named)", "command", "rows"],
                cells,
            )
        )
    return Section("Test-set evaluations", blocks)


def _ledger_cells(entry: LedgerEntry) -> list[str]:
    words = [word for word in entry.command.split() if word.isalpha() and word != "medmoco"]
    return [
        entry.time[:19].replace("T", " ") or NOTHING,
        "; ".join(
            [
                *(f"{label} {number(value)}" for label, value in entry.auroc.items()),
                *(f"{target} R2 {number(value)}" for target, value in entry.r2.items()),
                *(f"{name} Dice {number(value)}" for name, value in entry.dice.items()),
            ]
        )
        or NOTHING,
        words[0] if words else NOTHING,
        f"{count(entry.rows)} ({where_words(entry.where)})",
    ]


def _cards(runs: Sequence[Run]) -> Section:
    cards = {
        run.name: [Fold("The model card of the export", [Html(_from_markdown(run.card))])] for run in runs if run.card
    }
    words = "{run} has no model card: `medmoco export --run {run} --out {run}/export`."
    return by_run("Model card", cards, missing(runs, lambda run: not run.card, words))


def _from_markdown(text: str) -> str:
    """Convert Markdown to HTML without links and images, with headings below those of the page."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    html = str(parser.renderer.render(tokens, parser.options, {}))
    return html.replace("<table>", '<div class="scroll" role="group" aria-label="Table" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def _pictures(files: Sequence[tuple[Path, str]]) -> list[Section]:
    """Return the section with PNG files and their captions, or none."""
    blocks: list[Block] = [Text("These pictures may show patients: protect this file like the images.", "warning")]
    for at, (file, caption) in enumerate(files, 1):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SettingsError(f"--pictures: {file} cannot be read: {error.strerror}") from None
        if not content.startswith(_PNG):
            raise SettingsError(f"--pictures: {file} is not a PNG file")
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        alt = caption or f"Picture {at} of {len(files)}, added by the author of the report"
        blocks.append(Picture(source, alt, caption))
    return [Section("Images", blocks)] if files else []


@dataclass(frozen=True)
class Head:
    """What the page starts with.

    Attributes:
        title: Title of the page.
        subtitle: Method, backbone and size of the training.
        summary: The main result.
        has_pictures: Whether the page has pictures, which may show patients.
    """

    title: str
    subtitle: str
    summary: Sequence[Block]
    has_pictures: bool


def render(head: Head, sections: Sequence[Section]) -> str:
    """Render the template; everything is escaped."""
    environment = Environment(
        loader=PackageLoader("medmoco.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    numbers = counter(1)
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["tie"] = lambda text: text.replace(" %", f"{NO_BREAK}%")
    environment.filters["draw"] = lambda plot: inline_svg(plot.figure, f"figure{next(numbers)}", plot.alt)
    return environment.get_template("report.html.j2").render(head=head, sections=sections)
