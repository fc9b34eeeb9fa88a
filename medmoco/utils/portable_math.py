"""Elementary functions that give bitwise identical results on every CPU.

Views must be the same on all machines of a run. IEEE 754 specifies the rounding of +, -, *, / and square roots, so all
CPUs agree on those. It leaves exp, log, cos and powers to the library, and NumPy's differ in the last bits between CPUs
with and without AVX-512. Here they are built from the specified operations, accurate to 1e-12.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POWER_STEP = 1 / 256
"""Exponents of `power` are multiples of this; half a step changes an 8-bit grey level by at most a fifth."""

# Divisor of each term of a series, last term first.
_EXP = np.arange(6.0, 0, -1)[:, None]  # (6, 1)
_COS_SIN = np.array([[[n * (n - 1)], [n * (n + 1)]] for n in range(28, 0, -2)], np.float64)  # (14, 2, 1)


def exp(x: Floats) -> Floats:
    """Return e to the power of x, (N,), for |x| up to about ten: the series of x / 1024, squared ten times."""
    result = np.ones_like(x)
    for term in x / 1024 / _EXP:
        result = 1 + term * result
    for _ in range(10):
        result *= result
    return result


def log(x: Floats) -> Floats:
    """Return the natural logarithm of x > 0, (N,), by the series of atanh."""
    mantissa, exponent = np.frexp(x)  # mantissa from 0.5 to 1
    is_low = mantissa < 0.75
    mantissa, exponent = np.where(is_low, 2 * mantissa, mantissa), exponent - is_low  # from 0.75 to 1.5
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    result: Floats = np.zeros_like(x)
    for n in range(21, 0, -2):
        result = 1 / n + square * result
    result = exponent * math.log(2) + 2 * ratio * result
    return result


def cos_sin(x: Floats) -> tuple[Floats, Floats]:
    """Return cosine and sine of x, (N,), for |x| up to pi, by their series."""
    result = np.ones((2, x.size))
    for term in x * x / _COS_SIN:
        result = 1 - term * result
    return result[0], x * result[1]


def power(base: NDArray[np.float32], exponent: Floats) -> NDArray[np.float32]:
    """Return each row raised to its own power, as a product of the row and its repeated square roots.

    Args:
        base: (B, N), at least 0.
        exponent: (B,), at least 0; multiples of POWER_STEP.
    """
    steps = np.rint(exponent / POWER_STEP).astype(np.int64)
    result, root, bit = np.ones_like(base), base.copy(), round(1 / POWER_STEP)
    for _ in range(steps.max() // bit):
        _multiply(result, base, steps >= bit)
        steps = np.where(steps >= bit, steps - bit, steps)
    while bit > 1:
        bit //= 2
        np.sqrt(root, out=root)
        _multiply(result, root, steps & bit > 0)
    return result


def _multiply(rows: NDArray[np.float32], factors: NDArray[np.float32], chosen: NDArray[np.bool_]) -> None:
    """Multiply the chosen rows in place."""
    if chosen.all():  # no copies: the one row of 16 bits is as large as an image
        rows *= factors
    else:
        rows[chosen] *= factors[chosen]
