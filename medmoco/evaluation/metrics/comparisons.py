"""Is one encoder better than another: p of a paired bootstrap, and p for several comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats


def bootstrap_p(differences: Floats) -> float:
    """Return the two-sided p of no difference, from draws of a paired difference.

    It is twice the share of draws on the less common side of 0, where draws at 0 are on both sides: the smallest
    level whose percentile interval leaves 0 out. One draw is added to each side, so that p is never 0; the smallest p
    of D draws is 2 / (D + 1).

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, equation 4.11.

    Args:
        differences: (D,), nan where a draw is undefined.

    Returns:
        nan where no draw is defined.
    """
    defined = differences[~np.isnan(differences)]
    if not defined.size:
        return math.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (defined.size + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p of several comparisons, so that the chance of any false alarm among them keeps its level.

    Source: Holm 1979 (jstor.org/stable/4615733); it holds whatever the dependence between the comparisons.

    Args:
        p_values: One for each; None or nan where a comparison could not be made, which does not count as one.

    Returns:
        In the same order; None where there was no p.
    """
    places = [place for place, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(places, key=lambda place: p_values[place] or 0.0)):
        highest = max(highest, min(1.0, (len(places) - rank) * (p_values[place] or 0.0)))
        adjusted[place] = highest
    return adjusted
