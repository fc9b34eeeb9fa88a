"""Where the site shows the files of the repository, and links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Page -> the document outside docs/ that it shows.
COPIED = {
    "index.md": "README.md",
    "guides/datasets.md": "dataset_processing/README.md",
    "reference/changelog.md": "CHANGELOG.md",
    "reference/contributing.md": "CONTRIBUTING.md",
    "reference/manifests.md": "manifests/README.md",
}

# Other files that pages link to -> where the site shows them.
SHOWN_ON = {
    "configs/cxr.yaml": "reference/configs.md#cxryaml",
    "dataset_processing": "guides/datasets.md",
    "examples/own_loop.py": "own_loop.md#plain-pytorch",
    "examples/third_party_trainer.py": "own_loop.md#pytorch-ignite",
    "medmoco/errors.py": "reference/api.md#errors",
}


def title(path: Path) -> str:
    """Return the title of a Markdown file."""
    return re.sub(r"^# |`", "", path.read_text(encoding="utf-8").partition("\n")[0])


def page_of(path: str) -> str | None:
    """Return where the site shows a file of the repository, or None."""
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/")
    if Path(path).match("examples/*.ipynb"):
        return f"tutorials/{Path(path).stem}.md"
    return SHOWN_ON.get(path) or {source: page for page, source in COPIED.items()}.get(path)


def relative(target: str, page: str) -> str:
    """Return the link from a page to another."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def with_links(markdown: str, page: str, source: str) -> str:
    """Point links to files of the repository to where the site shows them; if it does not, their text remains.

    Links that show the name of a page show its title instead. Those to files that do not exist stay as they are, for
    Zensical to refuse.
    """

    def replace(link: re.Match[str]) -> str:
        before, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        path = ((ROOT / source).parent / target).resolve()
        if ":" in target or not path.is_relative_to(ROOT):
            return link.group()
        shown = page_of(path.relative_to(ROOT).as_posix())
        if shown:
            return f"{before}[{title(path) if text.endswith('.md') else text}]({relative(shown, page)}{anchor})"
        return text if path.exists() else link.group()

    def place(picture: re.Match[str]) -> str:
        path = ((ROOT / source).parent / picture.group(1)).resolve().relative_to(ROOT)
        return f'<img src="{relative(page_of(path.as_posix()) or "", page)}"'

    markdown = re.sub(r'<img src="([^":]+)"', place, markdown)
    return re.sub(r"(!?)\[([^]]*)\]\(([^)#\s]+)(#[^)]*)?\)", replace, markdown)
