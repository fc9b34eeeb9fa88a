"""Round numbers."""

from __future__ import annotations


def power_of_two(most: int) -> int:
    """Return the largest power of two up to a number, 1 at least."""
    return 1 << max(most, 1).bit_length() - 1
