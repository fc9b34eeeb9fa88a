"""Build the site: collect its pages in a temporary folder, generate the others, and let Zensical check and render them.

`make docs` runs `python -m docs.site.build`; with `--no-notebooks`, it is faster while you write other pages.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.site import notebooks, settings

ROOT = Path(__file__).resolve().parents[2]


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _commands() -> str:
    """Return every command with its options, as typer writes them."""
    import typer
    from typer.cli import get_docs_for_click

    from medmoco.cli import app

    group = typer.main.get_command(app)
    context: Any = typer.Context(group, info_name="medmoco")
    text = get_docs_for_click(obj=group, ctx=context, name="medmoco")
    return text[text.index("\n## ") :]  # below the title and the list of commands


def _configs() -> str:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    return "\n".join(f"## {path.name}\n\n```yaml\n{_read(f'configs/{path.name}')}```\n" for path in files)


def _scripts() -> str:
    titles = {"own_loop.py": "Plain PyTorch", "third_party_trainer.py": "PyTorch-Ignite"}
    return "\n".join(f"## {title}\n\n```python\n{_read(f'examples/{name}')}```\n" for name, title in titles.items())


# Page -> what writes the part of it that is generated, below its introduction in docs/.
GENERATED: dict[str, Callable[[], str]] = {
    "own_loop.md": _scripts,
    "reference/commands.md": _commands,
    "reference/configs.md": _configs,
    "reference/settings.md": settings.markdown,
}

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


def collect(folder: Path, *, execute: bool = True) -> None:
    """Write the pages and pictures of the site to a folder."""
    for path in sorted((ROOT / "docs").rglob("*")):
        name = path.relative_to(ROOT / "docs").as_posix()
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8") + (f"\n{GENERATED[name]()}" if name in GENERATED else "")
            _write(folder / name, _with_links(text, name, f"docs/{name}"))
        elif path.suffix in {".css", ".png", ".svg"}:
            target = folder / name.removeprefix("site/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for page, source in COPIED.items():
        alone = "---\nhide: [navigation]\n---\n\n" if page == "index.md" else ""
        _write(folder / page, alone + _with_links(_read(source), page, source))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        name = f"tutorials/{path.stem}.md"
        text, pictures = notebooks.page(path, execute=execute)
        _write(folder / name, _with_links(text, name, f"examples/{path.name}"))
        for picture, content in pictures.items():
            (folder / "tutorials" / picture).write_bytes(content)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _with_links(markdown: str, page: str, source: str) -> str:
    """Point links to files of the repository to where the site shows them; if it does not, their text remains.

    Links that show the name of a page show its title instead. Those to files that do not exist stay as they are, for
    Zensical to refuse.
    """

    def replace(link: re.Match[str]) -> str:
        before, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        path = ((ROOT / source).parent / target).resolve()
        if ":" in target or not path.is_relative_to(ROOT):
            return link.group()
        shown = _page_of(path.relative_to(ROOT))
        if shown:
            title = _title(path) if text.endswith(".md") else text
            return f"{before}[{title}]({posixpath.relpath(shown, posixpath.dirname(page) or '.')}{anchor})"
        return text if path.exists() else link.group()

    return re.sub(r"(!?)\[([^]]*)\]\(([^)#\s]+)(#[^)]*)?\)", replace, markdown)


def _title(path: Path) -> str:
    return re.sub(r"^# |`", "", path.read_text(encoding="utf-8").partition("\n")[0])


def _page_of(path: Path) -> str | None:
    """Return where the site shows a file of the repository, or None."""
    name = path.as_posix()
    if path.parts[0] == "docs" and (ROOT / path).is_file():
        return name.removeprefix("docs/")
    if path.match("examples/*.ipynb"):
        return f"tutorials/{path.stem}.md"
    return SHOWN_ON.get(name) or {source: page for page, source in COPIED.items()}.get(name)


def build(out: Path, *, execute: bool = True) -> None:
    """Build the site into a folder, which is replaced.

    Raises:
        subprocess.CalledProcessError: a link, an anchor or a documented name does not exist, which was printed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(folder / "docs", execute=execute)
        shutil.copyfile(ROOT / "zensical.toml", folder / "zensical.toml")
        program = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        subprocess.run(program, cwd=folder, check=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder / "site", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site, which is replaced")
    parser.add_argument("--no-notebooks", dest="execute", action="store_false", help="show notebooks without outputs")
    arguments = parser.parse_args()
    try:
        build(arguments.out, execute=arguments.execute)
    except subprocess.CalledProcessError:
        sys.exit("the site was not written: correct the pages named above")
    print(f"open {arguments.out}/index.html; to search as well, python -m http.server --directory {arguments.out}")
