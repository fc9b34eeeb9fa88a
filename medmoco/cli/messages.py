"""Error messages on a terminal: lines that fit, broken where commands, settings and paths can still be copied."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

_QUOTED = r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`"""
_SETTING = rf"[\w.]+=(?:{_QUOTED}|\S)+"
_UNIT = re.compile(rf"{_SETTING}(?: {_SETTING})*|(?:{_QUOTED}|\S)+")
"""What is not broken: settings, which are pasted together, what is quoted, and other words."""


def columns() -> int:
    """Return the width of the terminal; 0 if messages go to a file, in which `grep` needs whole lines."""
    try:  # without COLUMNS, which readline sets for every process that is started, whatever its output goes to
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def fitted(text: str, width: int) -> str:
    """Return a text whose lines are broken to fit a width, unless that is 0.

    A line ends with a sentence or clause if one ends in its second half, else at a comma or before a parenthesis, else
    with the last word that fits. A unit that is wider than the width is left whole, for the terminal to break.
    """
    return "\n".join(part for line in text.split("\n") for part in _parts(line, width)) if width else text


def _parts(line: str, width: int) -> Iterator[str]:
    while len(line) > width:
        ends = [unit.end() for unit in _UNIT.finditer(line)][:-1]
        if not ends:
            break
        fitting = [end for end in ends if end <= width] or ends[:1]
        late = [end for end in fitting if end > width / 2]
        clauses = [end for end in late if line[end - 1] in ".:;?"]
        pauses = [end for end in late if line[end - 1] == "," or line[end : end + 2] == " ("]
        end = (clauses or pauses or fitting)[-1]
        yield line[:end]
        line = line[end:].lstrip()
    yield line
