"""R2 and mean absolute error of predicted numbers, with their bootstrap over patients."""

from __future__ import annotations

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Integers, Reals, bootstrap_sums, ratio

_NO_VARIANCE = 1e-12  # a smaller part of the sum of squares is rounding


def undefined_values(targets: Reals) -> str | None:
    """Return why targets (N,), nan if missing, have no R2; None if they have one."""
    known = targets[~np.isnan(targets)]
    if not known.size:
        return "undefined (no rows with a value)"
    return "undefined (all values are equal)" if (known == known[0]).all() else None


def errors_of(targets: Reals, predictions: Reals) -> tuple[float, float]:
    """Return R2 and the mean absolute error; means over K fits, nan where undefined.

    R2 is 1 - sum (y - p)^2 / sum (y - mean y)^2: 1 is perfect, 0 as good as the mean of these targets, and there is no
    lowest value.

    Args:
        targets: (N,), nan if missing.
        predictions: (K, N), finite.
    """
    sums = _columns(targets, predictions).sum(axis=0, keepdims=True)
    r2, mae = _from_sums(sums)
    return float("nan") if undefined_values(targets) else float(r2[0]), float(mae[0])


def bootstrap_errors(
    targets: Reals, predictions: Reals, patients: Integers, *, draws: int, seed: int
) -> tuple[Floats, Floats]:
    """Return R2 and mean absolute error of D bootstrap draws of patients, (D,) each, nan where undefined.

    The draws are those of `bootstrap_auroc`; the other arguments those of `errors_of`.
    """
    return _from_sums(bootstrap_sums(_columns(targets, predictions), patients, draws=draws, seed=seed))


def _columns(targets: Reals, predictions: Reals) -> Floats:
    """Return the terms of the sums for each row, (N, 5), 0 for a row without target."""
    known = ~np.isnan(targets)
    centred = targets - (targets[known].mean() if known.any() else 0)
    errors = predictions - targets
    terms = [np.ones_like(targets), centred, centred**2, (errors**2).mean(axis=0), np.abs(errors).mean(axis=0)]
    return np.where(known[:, None], np.stack(terms, axis=1), 0.0)


def _from_sums(sums: Floats) -> tuple[Floats, Floats]:
    count, first, second, squared, absolute = sums.T
    total = second - np.divide(first**2, count, out=np.zeros_like(first), where=count > 0)
    total = np.where(total > _NO_VARIANCE * second, total, 0.0)
    return 1 - ratio(squared, total), ratio(absolute, count)
