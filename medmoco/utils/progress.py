"""How far a long pass over files has come: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

_SECONDS = 30.0  # between two lines


def track(items: Iterable[Item], total: int, what: str, console: Console | None = None) -> Iterator[Item]:
    """Yield the items and show on standard error how many there were, how fast, and the time left.

    Args:
        items: As many as `total`.
        total: How many there will be.
        what: Done with them, such as "reading".
        console: Instead of standard error.
    """
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    start = said = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f}/s"), TimeRemainingColumn())
    with Progress(TextColumn(what), *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            rate = done / max(now - start, 1e-9)
            bar.update(task, completed=done, rate=rate)
            if not console.is_terminal and now - said >= _SECONDS:
                said = now
                left = timedelta(seconds=round((total - done) / rate))
                console.print(f"{what}: {done}/{total}, {rate:.0f}/s, {left} left", markup=False)
