"""Collect all reasons to refuse a run, so that the user reads them at once and not one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from medmoco.errors import MedmocoError, SettingsError

_LINES = 5  # of an error message


class Refusals:
    """Errors that would stop a run."""

    def __init__(self) -> None:
        self._errors: list[MedmocoError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, error: MedmocoError) -> None:
        """Collect an error, unless it is there already; one that stands for several counts as these."""
        for each in error.errors if isinstance(error, _Several) else [error]:
            if str(each) not in map(str, self._errors):
                self._errors.append(each)

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
        if not self._errors:
            return
        first = self._errors[0]
        if len(self._errors) == 1:
            raise first
        if isinstance(first, SettingsError):
            raise _Several(self._errors)
        raise type(first)(_text_of_several(self._errors))


class _Several(SettingsError):
    """Several errors in one."""

    def __init__(self, errors: list[MedmocoError]) -> None:
        self.errors = errors
        super().__init__(_text_of_several(errors), _fix(errors))


def _fix(errors: list[MedmocoError]) -> dict[str, object]:
    fix: dict[str, object] = {}
    for error in errors:
        if isinstance(error, SettingsError):
            fix = {**error.fix, **fix}  # the first proposal for a setting counts
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
    return str(error).partition("\n")[0].rstrip(" ,;:")


def setting_words(fix: Mapping[str, object]) -> str:
    """Return a line that can be pasted behind a command, such as "Set data.workers=1 train.epochs=3"."""
    return f"Set {' '.join(f'{key}={value}' for key, value in fix.items())}"
