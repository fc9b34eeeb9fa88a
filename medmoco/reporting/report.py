"""`medmoco report`: a self-contained HTML file about one or several runs, without scripts."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from medmoco.errors import SettingsError
from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.verdict import curve_verdict, verdicts
from medmoco.plotting.style import inline_svg
from medmoco.reporting.appendix import appendix_section
from medmoco.reporting.blocks import Block, Html, Picture, Section, Text, number
from medmoco.reporting.curves import curve_plots, curve_section, curves_section
from medmoco.reporting.external import external_section
from medmoco.reporting.runs import Run, missing, read_run
from medmoco.reporting.scores import (
    encoder_name,
    label_words,
    labels_of,
    ledger_section,
    operating_section,
    scores_section,
    subgroups_section,
)  # fmt: skip
from medmoco.reporting.targets import targets_section
from medmoco.reporting.training import data_section, overview, settings_section, training_section, versions_section
from medmoco.utils.files import PathLike, replacing

_PNG = b"\x89PNG\r\n\x1a\n"


def report(
    runs: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    card: PathLike | None = None,
    pictures: Sequence[PathLike] = (),
    title: str = "",
    log: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write one HTML file about one or several runs, side by side; it works offline.

    Args:
        runs: Run folder, or several.
        out: HTML file to write; report.html in the first folder if not given.
        card: Model card of the first run, instead of the one in its folder.
        pictures: PNG files to include; they may show patients.
        title: Title of the page.
        log: Receives the main results, one sentence at a time.

    Returns:
        The file.

    Raises:
        SettingsError: a folder is not a run, a picture is not a PNG file, or the file cannot be written.
        CheckpointError: a file of a run is damaged.

    Examples:
        >>> import medmoco
        >>> medmoco.report("runs/phantoms").name
        'report.html'
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    out = Path(out) if out else folders[0] / "report.html"
    own_card = Path(card) if card else None
    read = _numbered([read_run(run, own_card if at == 0 else None) for at, run in enumerate(folders)])
    sections = [*_sections(read), *([_pictures([Path(file) for file in pictures])] if pictures else [])]
    gains, scores = _gains(read), [line for run in read for line in _headlines(run, read)]
    lead = [*_as_lead(gains), *_first_figure(read), *_as_lead(scores), overview(read)]
    page = render(title or ", ".join(run.name for run in read), lead, sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    for line in gains or scores:
        log(line)
    return out


def _numbered(runs: Sequence[Run]) -> list[Run]:
    """Number the runs if their folders have the same name."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({names[:at].count(run.name) + 1})") if names.count(run.name) > 1 else run
        for at, run in enumerate(runs)
    ]


def _sections(runs: Sequence[Run]) -> list[Section]:
    parts = (
        data_section, training_section, scores_section, targets_section, curve_section, curves_section,
        operating_section, subgroups_section, external_section, ledger_section, settings_section, versions_section,
        _cards, appendix_section,
    )  # fmt: skip
    sections = [part(runs) for part in parts]
    return [section for section in sections if section.blocks or section.sections]


def _gains(runs: Sequence[Run]) -> list[str]:
    """Return one sentence for each run with a label-efficiency curve: the gain with the fewest labels."""
    found = {
        run.name: curve_verdict(run.curve or (), run.curve_differences or (), shown_split(run.curve or ()))
        for run in runs
    }
    return [line if len(runs) == 1 else f"{name}: {line}" for name, line in found.items() if line]


def _as_lead(lines: Sequence[str]) -> list[Block]:
    return [Text(line, "lead") for line in lines]


def _first_figure(runs: Sequence[Run]) -> list[Block]:
    """Return the label efficiency of the first label, which shows the gain best, if there is one run."""
    return [block for run in runs[:1] if len(runs) == 1 for block in curve_plots(run)][:1]


def _headlines(run: Run, runs: Sequence[Run]) -> list[str]:
    """Return the scores of up to four labels, with what they show; of more labels, only their mean."""
    found = verdicts(run.evaluation.scores or (), run.evaluation.differences or ())
    shown = {verdict.label: f" {verdict.text}" for verdict in found}
    lines = []
    split, primary = run.evaluation.split, run.evaluation.primary
    scores = [
        score
        for score in run.evaluation.scores or ()
        if (score.split, score.method) == (split, "linear") and score.auroc is not None
    ]
    labels = labels_of(scores)
    for label in labels if len(labels) <= 4 else labels[-1:]:
        by_encoder = {score.encoder: score for score in scores if score.label == label}
        own = by_encoder.pop(primary or "", None)
        if own is None:
            continue
        name = encoder_name(run, own.encoder, runs, is_primary=True)
        line = f"{label_words(label)}: {name} has an AUROC of {number(own.auroc)} on {split}"
        if own.auroc_low is not None:
            line += f" (95 % interval {number(own.auroc_low)} to {number(own.auroc_high)})"
        others = [f"{encoder} {number(score.auroc)}" for encoder, score in by_encoder.items()]
        line += f"; {', '.join(others)}." if others else "."
        lines.append(line + shown.pop(label, ""))
    suspect = [verdict.label for verdict in found if verdict.kind == "pixels" and verdict.label in shown]
    if suspect:
        lines.append(
            f"Raw pixels do as well as every encoder on these labels, which may be easy: {', '.join(suspect)}."
        )
    return lines


def _cards(runs: Sequence[Run]) -> Section:
    sections = [Section(run.name, [Html(_from_markdown(run.card))]) for run in runs if run.card]
    words = "{run} has no model card: `medmoco export --run {run} --out {run}/export`."
    return Section("Model card", missing(runs, lambda run: not run.card, words), sections)


def _from_markdown(text: str) -> str:
    """Convert Markdown to HTML without links and images, with headings below those of the page."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    html = str(parser.renderer.render(tokens, parser.options, {}))
    return html.replace("<table>", '<div class="scroll" role="group" aria-label="Table" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def _pictures(files: Sequence[Path]) -> Section:
    blocks: list[Block] = [Text("These pictures may show patients: protect this file like the images.", "warning")]
    for at, file in enumerate(files, 1):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SettingsError(f"--pictures: {file} cannot be read: {error.strerror}") from None
        if not content.startswith(_PNG):
            raise SettingsError(f"--pictures: {file} is not a PNG file")
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        blocks.append(Picture(source, f"Picture {at} of {len(files)}, added by the author of the report"))
    return Section("Pictures", blocks)


def render(title: str, lead: Sequence[Block], sections: Sequence[Section]) -> str:
    """Render the template; everything is escaped."""
    environment = Environment(
        loader=PackageLoader("medmoco.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    numbers = count(1)
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["draw"] = lambda plot: inline_svg(plot.figure, f"figure{next(numbers)}", plot.alt)
    return environment.get_template("report.html.j2").render(title=title, lead=lead, sections=sections)
