"""The result of a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "fault"]

REINSTALL = "install the packages again: pip install --upgrade --force-reinstall"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: "ok", "warning" (a run works, perhaps slowly), or "fault" (it stops a run).
        text: What was found; without names of the user, the machine or folders.
        remedy: What to do about it; blank if all is well.

    Examples:
        >>> import medmoco
        >>> [finding.remedy for finding in medmoco.doctor() if finding.state == "fault"]
        []
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def findings_text(findings: Iterable[Finding]) -> str:
    """Return the findings as lines for the screen."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.name}: {finding.text}")
        lines += [f"{'':8} -> {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines)
