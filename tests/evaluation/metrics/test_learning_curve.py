"""Inverse power laws are recovered from their own points, and are the least squares that scipy finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from medmoco.evaluation.metrics.learning_curve import first_size, fit_power_laws, refusal

SIZES = np.array([10.0, 50.0, 100.0, 500.0, 1000.0])


@pytest.mark.parametrize(("a", "b", "c"), [(0.1, 0.6, 0.5), (0.0, 0.9, 0.3), (0.02, 3.0, 1.0), (0.25, 0.2, 0.0)])
def test_fit_power_laws__extrapolates_known_curves(a: float, b: float, c: float) -> None:
    laws = fit_power_laws(SIZES, (a + b * SIZES**-c)[None])
    free, zero = laws.errors(np.array([5000.0]))[0, :, 0]
    assert free == pytest.approx(a + b * 5000.0**-c, abs=5e-4)
    assert (laws.a >= 0).all()
    assert laws.a[1, 0] == 0
    if a == 0:
        assert zero == pytest.approx(b * 5000.0**-c, abs=5e-4)
    else:
        assert 0 < zero < free or c == 0


def test_fit_power_laws__are_the_weighted_least_squares_of_scipy() -> None:
    generator = np.random.default_rng(0)
    errors = 0.08 + 0.7 * SIZES**-0.4 + generator.normal(0, 0.1 / np.sqrt(SIZES), (20, SIZES.size))
    laws = fit_power_laws(SIZES, errors)
    kinds = [
        (lambda n, a, b, c: a + b * n**-c, [0.05, 0.5, 0.5], ([0, 0, 0], [1, 9, 1])),
        (lambda n, b, c: b * n**-c, [0.5, 0.5], ([0, 0], [9, 1])),
    ]
    for kind, (law, start, bounds) in enumerate(kinds):
        for number, row in enumerate(errors):
            found, _ = curve_fit(law, SIZES, row, p0=start, sigma=SIZES**-0.5, bounds=bounds)
            both = law(SIZES, *found), laws.errors(SIZES)[:, kind, number]
            theirs, ours = (np.sqrt(SIZES @ (fitted - row) ** 2 / SIZES.sum()) for fitted in both)
            assert ours <= theirs + 2e-4  # exponents are on a grid
            assert laws.errors(np.array([2000.0]))[0, kind, number] == pytest.approx(law(2000.0, *found), abs=2e-3)


def test_refusal__too_few_sizes_or_no_gain() -> None:
    assert refusal(SIZES, np.linspace(0.3, 0.1, 5)) is None
    assert "fewer than 3" in (refusal(np.array([5.0, 5.0, 9.0]), np.array([0.3, 0.2, 0.1])) or "")
    assert "does not rise" in (refusal(SIZES, np.full(5, 0.2)) or "")


def test_first_size__inverts_curves_and_stops_at_the_ends() -> None:
    sizes = np.geomspace(10, 10_000, 2000)
    curves = 0.1 + 0.6 * sizes**-0.5
    errors = np.array([0.1 + 0.6 * 400**-0.5, 0.1, 0.9])
    found = first_size(np.repeat(curves[:, None], 3, axis=1), errors, sizes)
    assert found[0] == pytest.approx(400, rel=0.01)
    assert found[1:].tolist() == pytest.approx([10_000, 10])
