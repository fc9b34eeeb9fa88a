"""Join modules of medmoco to the text of one file that works without medmoco.

The definitions are copied as they are, with their comments, so that there is a single implementation.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

Key = tuple[str, str]
"""A module, by its full name, and a name in it."""


@dataclass(frozen=True)
class _Definition:
    """A function, class or constant at the top of a module, with the comments before it and the string after it."""

    nodes: tuple[ast.stmt, ...]
    names: tuple[str, ...]
    first: int  # line, counted from 0
    last: int  # line after it


@dataclass(frozen=True)
class _Module:
    """A module without its imports."""

    name: str
    lines: list[str]
    definitions: list[_Definition]
    libraries: list[ast.Import | ast.ImportFrom]
    imported: dict[str, Key]  # names from other modules of medmoco; of a whole module, its name in it is blank

    @property
    def defined(self) -> dict[str, _Definition]:
        return {name: definition for definition in self.definitions for name in definition.names}

    @property
    def tail(self) -> str:
        return self.name.rpartition(".")[2]


def joined(modules: Sequence[ModuleType], *, entries: Sequence[str] = (), before: str = "") -> str:
    """Return the text of a file with the docstring of the last module.

    Args:
        modules: Each after those that it imports.
        entries: Functions of the last module; only what they need is copied. By default everything is.
        before: Definitions that take the place of those of modules that are not listed.

    Raises:
        AssertionError: two definitions have the same name, and a parameter or variable has it, too.
    """
    read = {module.__name__: _read(module) for module in modules}
    wanted = _needed(read, [(modules[-1].__name__, entry) for entry in entries]) if entries else _everything(read)
    renamed = _renamed(read, wanted)
    parts, copied = [before] if before else [], set[str]()
    for module in read.values():
        kept = [own for own in module.definitions if _is_new(own, module, wanted, renamed, copied)]
        if kept:
            copied |= {renamed.get((module.name, name), name) for own in kept for name in own.names}
            body = "\n".join(_text(own, module, read, renamed) for own in kept).strip("\n")
            parts.append(f"\n# ======== {module.tail.replace('_', ' ')} ========\n\n{body}")
    used = _words(read, wanted) | ({node.id for node in ast.walk(ast.parse(before)) if isinstance(node, ast.Name)})
    blocks = ["from __future__ import annotations", *_imports(read.values(), used), *parts]
    return f'"""{modules[-1].__doc__}"""\n\n' + "\n\n".join(blocks) + "\n"


def _read(module: ModuleType) -> _Module:
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    libraries: list[ast.Import | ast.ImportFrom] = []
    imported: dict[str, Key] = {}
    definitions: list[_Definition] = []
    nodes = ast.parse(text).body
    end = max((node.end_lineno or 0 for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))), default=0)
    for node in nodes:
        last = node.end_lineno or 0
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source = str(node.module).partition(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and source == module.__name__.partition(".")[0]:
                imported |= _imported(node)
            elif source != "__future__":
                libraries.append(node)
        elif last <= end or _is_guard(node):
            continue  # the docstring, or what runs a script
        elif isinstance(node, ast.Expr):  # the string that describes a constant
            before = definitions.pop()
            definitions.append(_Definition((*before.nodes, node), before.names, before.first, last))
        else:
            first = definitions[-1].last if definitions else end
            definitions.append(_Definition((node,), _names(node), first, last))
    return _Module(module.__name__, text.splitlines(), definitions, libraries, imported)


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _imported(node: ast.ImportFrom) -> dict[str, Key]:
    found = {}
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found[alias.asname or alias.name] = (whole, "") if whole in sys.modules else (str(node.module), alias.name)
    return found


def _names(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return tuple(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


# ---- what is needed ----


def _everything(read: dict[str, _Module]) -> set[Key]:
    return {(module.name, name) for module in read.values() for name in module.defined}


def _needed(read: dict[str, _Module], entries: Iterable[Key]) -> set[Key]:
    """Return definitions and all those that they refer to, directly or not."""
    found, waiting = set[Key](), [*entries]
    while waiting:
        module, name = waiting.pop()
        if (module, name) in found:
            continue
        definition = read[module].defined[name]
        found |= {(module, one) for one in definition.names}
        waiting += [key for _, key in _references(definition, read[module], read)]
    return found


def _references(definition: _Definition, module: _Module, read: dict[str, _Module]) -> Iterator[tuple[ast.expr, Key]]:
    """Yield where a definition refers to another of the modules, and which."""
    for node in (part for whole in definition.nodes for part in ast.walk(whole)):
        if isinstance(node, ast.Name):
            key = (module.name, node.id) if node.id in module.defined else module.imported.get(node.id, ("", ""))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            key = (module.imported.get(node.value.id, ("", ""))[0], node.attr)
        else:
            continue
        if key[0] in read and key[1] in read[key[0]].defined:
            yield node, key


def _words(read: dict[str, _Module], wanted: set[Key]) -> set[str]:
    """Return all names that occur in what is copied."""
    return {
        node.id
        for module, name in wanted
        for whole in read[module].defined[name].nodes
        for node in ast.walk(whole)
        if isinstance(node, ast.Name)
    }


# ---- names that several modules define ----


def _renamed(read: dict[str, _Module], wanted: set[Key]) -> dict[Key, str]:
    """Return new names, such as _nifti_load for _load, where definitions differ."""
    texts: dict[str, set[str]] = defaultdict(set)
    for module, name in wanted:
        texts[name].add("".join(ast.dump(node) for node in read[module].defined[name].nodes))
    new = {}
    for module, name in wanted:
        if len(texts[name]) > 1:
            new[module, name] = f"{'_' * name.startswith('_')}{read[module].tail}_{name.lstrip('_')}"
    counted = Counter([*(key[1] for key in wanted if key not in new), *new.values()])
    assert all(counted[name] == 1 for name in new.values())
    return new


def _is_new(own: _Definition, module: _Module, wanted: set[Key], renamed: dict[Key, str], copied: set[str]) -> bool:
    """Return whether to copy a definition: it is wanted, and no other module has the same."""
    if own.names and (module.name, own.names[0]) not in wanted:
        return False
    return not own.names or renamed.get((module.name, own.names[0]), own.names[0]) not in copied


def _text(own: _Definition, module: _Module, read: dict[str, _Module], renamed: dict[Key, str]) -> str:
    """Return the lines of a definition with its new names."""
    edits: list[tuple[int, int, int, str]] = []  # line, first and last byte, new text
    changed = set()
    for node, key in _references(own, module, read):
        old, new = node.id if isinstance(node, ast.Name) else "", renamed.get(key, key[1])
        if old != new:  # also where a name is imported under another, or used through its module
            assert node.lineno == node.end_lineno
            edits.append((node.lineno - 1, node.col_offset, node.end_col_offset or 0, new))
            changed.add(old)
    for whole in own.nodes:
        if isinstance(whole, (ast.FunctionDef, ast.ClassDef)) and (module.name, whole.name) in renamed:
            start = whole.col_offset + len("def " if isinstance(whole, ast.FunctionDef) else "class ")
            edits.append((whole.lineno - 1, start, start + len(whole.name), renamed[module.name, whole.name]))
    _refuse_shadows(own, changed)
    lines = list(module.lines)
    for line, first, last, new in sorted(edits, reverse=True):
        text = lines[line].encode()
        lines[line] = (text[:first] + new.encode() + text[last:]).decode()
    return "\n".join(lines[own.first : own.last])


def _refuse_shadows(own: _Definition, names: set[str]) -> None:
    """Refuse parameters and variables with the name of a renamed definition, which would no longer be the same."""
    for node in (part for whole in own.nodes for part in ast.walk(whole)):
        bound = node.arg if isinstance(node, ast.arg) else None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in own.names:
            bound = node.id
        assert bound not in names, f"{bound} is both a definition and a variable"


# ---- imports ----


def _imports(modules: Iterable[_Module], used: set[str]) -> list[str]:
    """Return the imports of libraries that are used: a block of Python's own, and one of others."""
    whole: set[str] = set()
    names: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        for node in module.libraries:
            for alias in node.names:
                if (alias.asname or alias.name).partition(".")[0] not in used:
                    continue
                if isinstance(node, ast.Import):
                    whole.add(ast.unparse(ast.Import([alias])))
                else:
                    names[str(node.module)].add(alias.name)
    lines = [*sorted(whole), *(_import_of(library, names[library]) for library in sorted(names))]
    own = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return ["\n".join(own), "\n".join(line for line in lines if line not in own)]


def _import_of(library: str, names: set[str]) -> str:
    """Write the import of names from a library."""
    line = f"from {library} import {', '.join(sorted(names))}"
    if len(line) <= 120:
        return line
    wrapped = textwrap.fill(", ".join(sorted(names)) + ",", 116, initial_indent="    ", subsequent_indent="    ")
    return f"from {library} import (\n{wrapped}\n)"
