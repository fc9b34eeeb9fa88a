"""Ctrl-C and SIGTERM as a flag, so that a long job stops where it can go on later."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Request:
    """A handler that remembers; told inside another one, it tells that too, so that a job of several jobs stops."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        outer = self.before[number]
        if isinstance(outer, _Request):
            outer(number, frame)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGUSR1 and the first Ctrl-C into a flag; saving happens in the loop, never in the handler."""
    request = _Request()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    request.before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, request)
    try:
        yield lambda: request.asked
    finally:
        for number in numbers:
            signal.signal(number, request.before[number])
