"""Collect all reasons to refuse a run, so that the user reads them at once and not one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from medmoco.errors import MedmocoError, SettingsError, first_line

_LINES = 5  # of an error message


class Refusals:
    """Errors that would stop a run.

    Attributes:
        errors: The errors, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.errors: list[MedmocoError] = []

    def __bool__(self) -> bool:
        return bool(self.errors)

    def add(self, *errors: MedmocoError) -> None:
        """Collect errors that are not there already."""
        for error in errors:
            if str(error) not in map(str, self.errors):
                self.errors.append(error)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect an error that the block raises, which ends the block."""
        try:
            yield
        except MedmocoError as error:
            self.add(error)

    def refuse(self) -> None:
        """Raise the collected errors as one; do nothing if there are none.

        Raises:
            MedmocoError: of the class of the first. Of each of several, the message has the first line and, in its last
                line, the settings that would help.
        """
        if not self.errors:
            return
        first = self.errors[0]
        if len(self.errors) == 1:
            raise first
        text = _text_of_several(self.errors)
        raise SettingsError(text, _fix(self.errors)) if isinstance(first, SettingsError) else type(first)(text)


def _fix(errors: list[MedmocoError]) -> dict[str, object]:
    fix: dict[str, object] = {}
    for error in errors:
        if isinstance(error, SettingsError):
            for key, value in error.fix.items():
                fix.setdefault(key, value)
    return fix


def _text_of_several(errors: list[MedmocoError]) -> str:
    fix = _fix(errors)
    room = _LINES - bool(fix)
    lines: list[str] = []
    for error in errors:  # in full if the last line does not help
        lines += [_first_line(error)] if isinstance(error, SettingsError) and error.fix else str(error).splitlines()
    if len(lines) > room:
        lines = [_first_line(error) for error in errors]
    if len(lines) > room:
        lines = [*lines[: room - 1], f"and {len(lines) - room + 1} more"]
    return "\n".join([*lines, *([setting_words(fix)] if fix else [])])


def _first_line(error: MedmocoError) -> str:
    return first_line(error).rstrip(" ,;:")


def setting_words(fix: Mapping[str, object]) -> str:
    """Return a line that can be pasted behind a command, such as "Set data.workers=1 train.epochs=3"."""
    return f"Set {' '.join(f'{key}={value}' for key, value in fix.items())}"
