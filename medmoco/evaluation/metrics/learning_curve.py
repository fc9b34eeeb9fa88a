"""Fit inverse power laws to a learning curve, and extrapolate it to more labels.

The error e of n labels is modelled as e(n) = a + b n^-c, with 0 <= a, 0 <= b and 0 <= c <= 1. A few points hardly
determine whether the error levels off, so that two curves are fitted: one with a free asymptote a, and one with a = 0.
Their mean is the estimate, and both count for its interval. docs/statistics.md compares this with either curve alone.

Source: Cortes et al. 1993, Learning Curves: Asymptotic Values and Rate of Convergence (NIPS 6); Hestness et al. 2017
(arXiv:1712.00409); Viering and Loog 2021 (arXiv:2103.10948). Weights as in Figueroa et al. 2012
(doi:10.1186/1472-6947-12-8), who let points count more the larger their n is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Reals

LEAST_SIZES = 3
"""Least number of sizes to which a curve is fitted, as many as a power law has parameters."""

# The error of a parametric learner falls at most as 1 / n (Amari et al. 1992, doi:10.1162/neco.1992.4.4.605); with an
# exponent of 0 the curve is level.
_EXPONENTS = np.concatenate([[0.0], np.geomspace(0.02, 1.0, 200)])


def refusal(sizes: Reals, errors: Reals) -> str | None:
    """Return why no curve is fitted to errors (S,) with sizes (S,), in ascending order; None if one is."""
    if np.unique(sizes).size < LEAST_SIZES:
        return f"fewer than {LEAST_SIZES} label fractions have a score"
    if errors[-1] >= errors[0]:
        return "the score does not rise with more labels"
    return None


@dataclass(frozen=True)
class PowerLaws:
    """K curves of both kinds, fitted to K errors.

    Attributes:
        a: (2, K) asymptotes; the second row is 0.
        b: (2, K) error above the asymptote at `scale` labels.
        c: (2, K) exponents.
        scale: Size at which n is 1.
    """

    a: Floats
    b: Floats
    c: Floats
    scale: float

    def errors(self, sizes: Reals) -> Floats:
        """Return the errors of all curves with numbers of labels (S,), (S, 2, K)."""
        found: Floats = self.a + self.b * (sizes[:, None, None] / self.scale) ** -self.c
        return found


def first_size(curves: Floats, errors: Floats, sizes: Reals) -> Floats:
    """Return the first of the sizes at which a curve is no longer above an error; the last one if it never is.

    Args:
        curves: (S, ...) errors of curves with the sizes.
        errors: (...) errors.
        sizes: (S,) in ascending order.
    """
    found: Floats = sizes[np.minimum((curves > errors).sum(axis=0), sizes.size - 1)]
    return found


def fit_power_laws(sizes: Reals, errors: Reals) -> PowerLaws:
    """Fit both kinds of curves to K learning curves by least squares.

    The mean of AUROCs over draws of n labelled patients has a variance of about 1 / n; the weights are its inverse.
    With an exponent given, a and b follow from linear regression, so that only the exponents are searched, on a grid
    (separable least squares; Golub and Pereyra 1973, doi:10.1137/0710036). Thousands of bootstrap samples are fitted at
    once, and no fit depends on a starting value.

    Args:
        sizes: (S,) numbers of labels.
        errors: (K, S) errors.
    """
    scale = float(sizes.max())
    weights = sizes / sizes.sum()
    best = np.full((2, len(errors)), np.inf)
    laws = np.zeros((3, 2, len(errors)))
    for exponent in _EXPONENTS:
        powers = (sizes / scale) ** -exponent
        straight = errors @ (weights * powers) / (weights @ powers**2)
        mean, middle = errors @ weights, weights @ powers
        spread = weights @ (powers - middle) ** 2
        slope = np.maximum((errors - mean[:, None]) @ (weights * (powers - middle)), 0) / spread if exponent else 0.0
        asymptote = mean - slope * middle
        is_free = asymptote >= 0  # otherwise the best a that is allowed is 0
        a = np.stack([np.where(is_free, asymptote, 0), np.zeros_like(mean)])
        b = np.stack([np.where(is_free, slope, straight), straight])
        loss = ((errors - a[..., None] - b[..., None] * powers) ** 2) @ weights
        better = loss < best
        best = np.where(better, loss, best)
        laws = np.where(better, np.stack([a, b, np.full_like(a, exponent)]), laws)
    a, b, c = laws
    return PowerLaws(a, b, c, scale)
