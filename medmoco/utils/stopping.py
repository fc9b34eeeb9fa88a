"""Ctrl-C and SIGTERM as a flag, so that a long job stops where it can go on later."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medmoco.errors import Stopped

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class _Request:
    """A handler that remembers; told inside another one, it tells that too, so that a job of several jobs stops."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {number: signal.getsignal(number) for number in _NUMBERS}

    def tell(self, number: int) -> None:
        self.asked = True
        outer = self.before[number]
        if isinstance(outer, _Request):
            outer.tell(number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.tell(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    @contextmanager
    def handling(self) -> Iterator[None]:
        for number in _NUMBERS:
            signal.signal(number, self)
        try:
            yield
        finally:
            for number in _NUMBERS:
                signal.signal(number, self.before[number])


class _RequestAtOnce(_Request):
    """A handler that raises."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.tell(number)
        # A run that is ending already ends for its own reason: a launcher tells the others to stop when one has failed.
        if sys.exception() is None:
            raise Stopped("stopped outside the training loop; --resume repeats what the last checkpoint does not hold")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGUSR1 and the first Ctrl-C into a flag; saving happens in the loop, never in the handler."""
    request = _Request()
    with request.handling():
        yield lambda: request.asked


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise Stopped where one of these signals comes outside a loop that stops at a good place, see above."""
    with _RequestAtOnce().handling():
        yield
