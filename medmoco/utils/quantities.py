"""Round numbers and numbers in words."""

from __future__ import annotations


def power_of_two(most: int) -> int:
    """Return the largest power of two up to a number, 1 at least."""
    return 1 << max(most, 1).bit_length() - 1


def size_words(count: float) -> str:
    """Return a number of bytes to about two digits, such as "850 MB", "1.5 GB" or "24 GB"."""
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:,.0f} GB" if count >= 10e9 else f"{count / 1e9:.1f} GB"
