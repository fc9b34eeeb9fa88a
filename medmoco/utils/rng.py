"""Counter-based random numbers: every draw is a pure function of the integers that identify it.

There is no generator state, so a run gives the same samples, views and permutations for any number of workers or
processes, and resuming needs only the step. The mixing function is SplitMix64 (Steele, Lea and Flood 2014,
doi:10.1145/2714064.2660195), applied to one key after the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Draws for different purposes use different first keys, so that they never share a stream.
ORDER, VIEW, SHUFFLE, SUBSET, WEIGHTS, SPLIT, SUBSTITUTE, PARTNER, PROPOSAL, CROP = range(10)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def hashed(*keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits mixed from integer keys; arrays broadcast."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        words = np.atleast_1d(np.asarray(key)).astype(np.uint64)
        state = _mix((state ^ _mix(words + _GOLDEN)) + _GOLDEN)
    return state


def uniform(*keys: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return uniform numbers from [0, 1), made of 53 bits of `hashed` of the same keys."""
    return (hashed(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(*keys: int, length: int) -> NDArray[np.int64]:
    """Return a random order of 0 .. length - 1."""
    return np.argsort(hashed(*keys, np.arange(length)), kind="stable")
