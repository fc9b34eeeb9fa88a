from __future__ import annotations

import math

import numpy as np
import pytest

from medmoco.utils.portable_math import POWER_STEP, cos_sin, exp, log, power


def test_exp_log_cos_sin__are_those_of_the_mathematical_library() -> None:
    x = np.linspace(-10, 10, 2001)
    np.testing.assert_allclose(exp(x), [math.exp(value) for value in x], rtol=1e-12)
    np.testing.assert_allclose(log(exp(x)), x, atol=1e-12)
    turns = np.linspace(-math.pi, math.pi, 2001)
    np.testing.assert_allclose(cos_sin(turns)[0], [math.cos(value) for value in turns], atol=1e-14)
    np.testing.assert_allclose(cos_sin(turns)[1], [math.sin(value) for value in turns], atol=1e-14)


def test_exp_log_cos_sin__what_changes_nothing_is_exact() -> None:
    assert exp(np.zeros(1)) == 1
    assert log(np.ones(1)) == 0
    assert [float(part[0]) for part in cos_sin(np.zeros(1))] == [1, 0]


@pytest.mark.parametrize("exponents", [[1.3], [0.0, 1.0, 2.0, 0.5, POWER_STEP], [2.71, 0.37, 1 - POWER_STEP, 5.125]])
def test_power__is_the_power_of_each_row(exponents: list[float]) -> None:
    chosen = np.rint(np.array(exponents) / POWER_STEP) * POWER_STEP
    base = np.tile(np.linspace(0, 1, 257, dtype=np.float32), (len(chosen), 1))
    expected = [[math.pow(value, exponent) for value in base[0]] for exponent in chosen]
    np.testing.assert_allclose(power(base, chosen), expected, atol=1e-6)
