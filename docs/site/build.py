"""Build the site: collect its pages in a temporary folder, generate the others, and let Zensical check and render them.

`make docs` runs `python -m docs.site.build`; with `--no-notebooks`, it is faster while you write other pages.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from docs.site import commands, finish, notebooks, settings
from docs.site.links import COPIED, ROOT, with_links


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _configs() -> str:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    return "\n".join(f"## {path.name}\n\n```yaml\n{_read(f'configs/{path.name}')}```\n" for path in files)


def _scripts() -> str:
    titles = {"own_loop.py": "Plain PyTorch", "third_party_trainer.py": "PyTorch-Ignite"}
    return "\n".join(f"## {title}\n\n```python\n{_read(f'examples/{name}')}```\n" for name, title in titles.items())


# Page -> what writes the part of it that is generated, below its introduction in docs/.
GENERATED: dict[str, Callable[[], str]] = {
    "own_loop.md": _scripts,
    "reference/commands.md": commands.markdown,
    "reference/configs.md": _configs,
    "reference/settings.md": settings.markdown,
}


def collect(folder: Path, *, execute: bool = True) -> None:
    """Write the pages and pictures of the site to a folder."""
    for path in sorted((ROOT / "docs").rglob("*")):
        name = path.relative_to(ROOT / "docs").as_posix()
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8") + (f"\n{GENERATED[name]()}" if name in GENERATED else "")
            _write(folder / name, with_links(text, name, f"docs/{name}"))
        elif path.suffix in {".css", ".png", ".svg"}:
            target = folder / name.removeprefix("site/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for page, source in COPIED.items():
        alone = "---\nhide: [navigation]\n---\n\n" if page == "index.md" else ""
        _write(folder / page, alone + with_links(_read(source), page, source))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        name = f"tutorials/{path.stem}.md"
        text, pictures = notebooks.page(path, execute=execute)
        _write(folder / name, with_links(text, name, f"examples/{path.name}"))
        for picture, content in pictures.items():
            (folder / "tutorials" / picture).write_bytes(content)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


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
        finish.finish(folder / "site")
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
