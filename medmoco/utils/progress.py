"""Progress of long operations on files: a bar on a terminal, otherwise a line every half minute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

_SECONDS = 30.0  # between two printed lines


def track(
    items: Iterable[Item],
    total: int,
    what: str,
    console: Console | None = None,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yield items and show progress.

    Args:
        items: Items whose sizes add up to `total`.
        total: What is counted, such as 600 images in 10 batches.
        what: The word for it.
        console: By default standard error.
        size: Returns the size of an item.
    """
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    start = printed = monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f}/s"), TimeRemainingColumn())
    with Progress(TextColumn(what), *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        done = 0
        for item in items:
            yield item
            done += size(item)
            now = monotonic()
            rate = done / max(now - start, 1e-9)
            bar.update(task, completed=done, rate=rate)
            if not console.is_terminal and now - printed >= _SECONDS:
                printed = now
                left = timedelta(seconds=round((total - done) / rate))
                console.print(f"{what}: {done}/{total}, {rate:.0f}/s, {left} left", markup=False)
