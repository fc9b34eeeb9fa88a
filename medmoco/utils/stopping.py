"""Turn Ctrl-C and SIGTERM into a flag, so that a long job stops where it can be resumed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medmoco.errors import Stopped

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class _Request:
    """A signal handler that sets a flag, also in any enclosing _Request, so that nested jobs stop together."""

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[int, Any] = {number: signal.getsignal(number) for number in _NUMBERS}

    def set(self, number: int) -> None:
        self.requested = True
        outer = self.previous[number]
        if isinstance(outer, _Request):
            outer.set(number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.set(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    @contextmanager
    def handling(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # which alone receives signals
            yield
            return
        for number in _NUMBERS:
            signal.signal(number, self)
        try:
            yield
        finally:
            for number in _NUMBERS:
                signal.signal(number, self.previous[number])


class _RequestAtOnce(_Request):
    """A handler that raises."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.set(number)
        # A run that is already ending keeps its own reason: when one process fails, the launcher stops the others.
        if sys.exception() is None:
            raise Stopped("stopped outside the training loop; --resume continues from the last checkpoint")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGUSR1 and the first Ctrl-C into a flag; the loop saves, never the handler."""
    request = _Request()
    with request.handling():
        yield lambda: request.requested


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise Stopped on one of these signals, for code outside a loop that checks the flag."""
    with _RequestAtOnce().handling():
        yield
