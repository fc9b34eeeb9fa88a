"""Let alternatives take turns, and compare them round by round: on a shared machine nothing else is worth quoting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def seconds_per_round(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every contestant once per round, in the same order, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median and the range, such as "0.95 [0.93-0.97]"."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def report(title: str, times: dict[str, list[float]], *, per_round: int, unit: str, reference: str) -> None:
    """Print rate and speed relative to the reference: median [lowest-highest] over the rounds."""
    print(f"\n{title}\n{'':44} {unit + '/s':>10}   relative to {reference}")
    for name, seconds in times.items():
        ratios = [base / own for base, own in zip(times[reference], seconds, strict=True)]
        rate = per_round / statistics.median(seconds)
        print(f"{name:44} {rate:10.0f}   {statistics.median(ratios):.2f}x [{min(ratios):.2f}-{max(ratios):.2f}]")
