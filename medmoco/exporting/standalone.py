"""The code that reads and prepares images, as one file that works without medmoco: the prepare.py of exports.

The modules are concatenated, without their imports of each other, so that there is a single implementation.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType

from medmoco.data.image_io import file_format, intensity, preprocessing, windowing
from medmoco.data.image_io.formats import bands, dicom, jpeg2000, png_jpeg, tiff

_LEFT_OUT = ("__future__", "medmoco")
_MODULES = (intensity, file_format, png_jpeg, tiff, bands, windowing, jpeg2000, dicom, preprocessing)
"""The modules, each after those that it imports."""


@cache
def standalone_source() -> str:
    """Return the text of prepare.py."""
    whole: set[str] = set()
    names: dict[str, set[str]] = defaultdict(set)
    parts = [_without_imports(module, whole, names) for module in _MODULES]
    imports = [*sorted(whole), *(_import_of(library, names[library]) for library in sorted(names))]
    own = [line for line in imports if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    others = [line for line in imports if line not in own]
    blocks = ["from __future__ import annotations", "\n".join(own), "\n".join(others), *parts]
    return f'"""{preprocessing.__doc__}"""\n\n' + "\n\n".join(blocks) + "\n"


def _without_imports(module: ModuleType, whole: set[str], names: dict[str, set[str]]) -> str:
    """Return the text of a module below its imports, under a heading; note which libraries and names it imports."""
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    last = 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            whole.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in _LEFT_OUT:
            names[node.module] |= {alias.name for alias in node.names}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            last = node.end_lineno or last
    body = "\n".join(text.splitlines()[last:]).strip("\n")
    title = module.__name__.rpartition(".")[2].replace("_", " ")
    return f"\n# ======== {title} ========\n\n{body}"


def _import_of(library: str, names: set[str]) -> str:
    """Write the import of names from a library."""
    line = f"from {library} import {', '.join(sorted(names))}"
    if len(line) <= 120:
        return line
    wrapped = textwrap.fill(", ".join(sorted(names)) + ",", 116, initial_indent="    ", subsequent_indent="    ")
    return f"from {library} import (\n{wrapped}\n)"
