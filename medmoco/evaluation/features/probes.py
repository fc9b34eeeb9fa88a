"""Linear probes and kNN on frozen features, and the draws of labelled patients for their training.

Targets are 1, 0 or nan, or for regression numbers or nan. nan is a missing label or a patient that was not drawn; such
rows are not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmoco.data.manifest.splits import fraction_size, nested_places
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.metrics.auroc import as_scores, auroc, undefined
from medmoco.evaluation.metrics.regression import errors_of, undefined_values

Floats = NDArray[np.float64]

KNN_TEMPERATURE = 0.07
"""Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4."""

_MAX_ITERATIONS = 2000
_BLOCK_CELLS = 2**20  # numbers in double precision at once, 8 MiB; all features may have more than the machine
_CHUNK_CELLS = 2**26  # cosines in memory at once, 512 MiB
_LEAST_CHUNK = 32  # queries, although that may need more: each chunk reads and normalises the whole bank
_TIE = float(np.finfo(np.float32).eps)  # cosines closer than this are equal within the precision of float32 features


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe and its scores.

    Attributes:
        strength: Chosen value of C.
        weights: (F,) coefficients of the standardised features; for a class, those of its logit.
        bias: Intercept.
        scores: Log-odds (N,) by split, see `metrics.as_scores`; probabilities would round to ties near 0 and 1. The
            threshold of decisions is 0. For regression, predicted numbers.
        notes: Remarks on the fit.
    """

    strength: float
    weights: Floats
    bias: float
    scores: dict[str, Floats]
    notes: tuple[str, ...] = ()


class Standard(NamedTuple):
    """Standardised features: mean 0 and variance 1 over the images of `train`, labelled or not.

    Attributes:
        features: (N, F) by split.
        mean: (F,) subtracted means.
        scale: (F,) standard deviations to divide by; 1 for a constant feature.
    """

    features: dict[str, Features]
    mean: Floats
    scale: Floats


def draw_patients(patients: NDArray[np.int64], targets: Floats, *, fraction: float, seed: int, draw: int) -> Floats:
    """Return the targets (N,) of a random fraction of patients, the others as nan.

    A patient's rank in the random order depends only on (seed, draw, patient), so a smaller fraction is a subset of a
    larger one. If a fraction contains only one class, the next patients in the order are added until it has both.

    Args:
        patients: (N,) patient codes.
        targets: (N,), both classes present.
        fraction: Fraction of the patients, rounded, at least one patient.
        seed: Seed of the run.
        draw: Number of the draw.
    """
    if fraction == 1:
        return targets
    codes, inverse = np.unique(patients, return_inverse=True)
    ranks = nested_places(codes, seed=seed, draw=draw)[inverse]
    first_of_each = [int(ranks[targets == value].min()) for value in (0, 1)]
    count = max(fraction_size(fraction, codes.size), *(first + 1 for first in first_of_each))
    return np.where(ranks < count, targets, np.nan)


def draw_classes(
    patients: NDArray[np.int64], codes: NDArray[np.int64], *, fraction: float, seed: int, draw: int
) -> NDArray[np.int64]:
    """Return the classes (N,) of a random fraction of each class's patients, at least one; the others become -1.

    Smaller fractions are subsets of larger ones. All labelled rows of a drawn patient are kept.

    Args:
        patients: (N,) patient codes.
        codes: (N,) class numbers, -1 if missing.
        fraction: Fraction of the patients of each class, rounded.
        seed: Seed of the run.
        draw: Number of the draw.
    """
    if fraction == 1:
        return codes
    names, inverse = np.unique(patients, return_inverse=True)
    ranks = nested_places(names, seed=seed, draw=draw)
    kept = np.zeros(names.size, bool)
    for number in np.unique(codes[codes >= 0]):
        own = np.unique(inverse[codes == number])
        kept[own[np.argsort(ranks[own])][: fraction_size(fraction, own.size)]] = True
    return np.where(kept[inverse], codes, -1)


def draw_values(patients: NDArray[np.int64], targets: Floats, *, fraction: float, seed: int, draw: int) -> Floats:
    """Return the numeric targets (N,) of a random fraction of patients, the others as nan.

    As in `draw_patients`, with numbers above the mean and others in place of the classes, so that a draw always has
    different numbers. Arguments are those of `draw_patients`; the targets are not all equal.
    """
    above = np.where(np.isnan(targets), np.nan, targets > np.nanmean(targets))
    drawn = draw_patients(patients, above, fraction=fraction, seed=seed, draw=draw)
    return np.where(np.isnan(drawn), np.nan, targets)


def standardise(features: Mapping[str, Features]) -> Standard:
    """Standardise features (N, F) by split, by the mean and variance of `train`."""
    from sklearn.preprocessing import StandardScaler  # not at the top: importing scikit-learn takes a second

    scaler, train = StandardScaler(), features["train"]
    for block in _blocks(*train.shape):
        scaler.partial_fit(train[block])
    scaled = {split: scaler.transform(values).astype(np.float32, copy=False) for split, values in features.items()}
    return Standard(scaled, scaler.mean_, scaler.scale_)


def linear_probe(
    features: Mapping[str, Features], train: Floats, validation: Floats | None, strengths: Sequence[float]
) -> Probe:
    """Fit logistic regression on `train`; C is chosen by the AUROC on `val`, never on `test`.

    Among equal AUROCs, the strongest regularisation is chosen. Without an AUROC on `val`, it is the middle value of C.

    Args:
        features: (N, F) by split, standardised.
        train: Targets of `train`, both classes present.
        validation: Targets of `val`; None if there is no such split.
        strengths: Values of C.
    """
    rows = ~np.isnan(train)
    reason = "no such split" if validation is None else undefined(validation)
    tried, notes = _candidates(strengths, reason)
    fits = []
    x, y = _labelled(features["train"], rows), train[rows]
    for strength, coefficients, biases, iterations in _logistic_fits(x, y, tried):
        weights, bias = coefficients[0], float(biases[0])
        score = 0.0
        if not reason and validation is not None:
            score = auroc(validation, as_scores(_logits(features["val"], weights, bias)))
        fits.append((score, strength, weights, bias, iterations))
    _, strength, weights, bias, iterations = max(fits, key=lambda fit: fit[0])  # the first of equals
    notes += _convergence(iterations)
    scores = {
        split: as_scores(_logits(values, weights, bias)) for split, values in features.items() if split != "train"
    }
    return Probe(strength, weights, bias, scores, tuple(notes))


def softmax_probe(
    features: Mapping[str, Features], train: Floats, validation: Floats | None, strengths: Sequence[float]
) -> list[Probe]:
    """Fit multinomial logistic regression on `train`, and return a probe for each of C classes.

    C is chosen as in `linear_probe`, by the mean one-versus-rest AUROC of the classes that have one on `val`. The
    scores of a class are the log-odds of its softmax probability.

    Args:
        features: (N, F) by split, standardised.
        train: (N, C), 1 for the class of a row and 0 for the others, or nan for a row without class; every class has
            rows.
        validation: (M, C) of `val`; None if there is no such split.
        strengths: Values of the regularisation strength C.
    """
    rows = ~np.isnan(train[:, 0])
    defined = [] if validation is None else [column for column in validation.T if not undefined(column)]
    reason = None if defined else "no such split" if validation is None else undefined(validation[:, 0])
    tried, notes = _candidates(strengths, reason)
    fits = []
    x, y = _labelled(features["train"], rows), train[rows].argmax(axis=1)
    for strength, weights, bias, iterations in _logistic_fits(x, y, tried):
        if len(weights) == 1:  # two classes: their logits have opposite signs
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        score = 0.0
        if defined and validation is not None:
            found = _class_scores(features["val"], weights, bias)
            score = float(np.nanmean([auroc(*pair) for pair in zip(validation.T, found.T, strict=True)]))
        fits.append((score, strength, weights, bias, iterations))
    _, strength, weights, bias, iterations = max(fits, key=lambda fit: fit[0])
    notes += _convergence(iterations)
    scores = {split: _class_scores(values, weights, bias) for split, values in features.items() if split != "train"}
    return [
        Probe(strength, weights[c], float(bias[c]), {split: own[:, c] for split, own in scores.items()}, tuple(notes))
        for c in range(len(weights))
    ]


def ridge_probe(
    features: Mapping[str, Features], train: Floats, validation: Floats | None, strengths: Sequence[float]
) -> Probe:
    """Fit ridge regression on `train`; C, whose inverse is the penalty, is chosen by R2 on `val`, never on `test`.

    Source: Hoerl and Kennard 1970 (doi:10.1080/00401706.1970.10488634).

    Args:
        features: (N, F) by split, standardised.
        train: Numbers or nan of `train`, not all equal.
        validation: Numbers or nan of `val`; None if there is no such split.
        strengths: Values of C.
    """
    from sklearn.linear_model import Ridge

    rows = ~np.isnan(train)
    reason = "no such split" if validation is None else undefined_values(validation)
    tried, notes = _candidates(strengths, reason)
    x, y = features["train"][rows].astype(np.float64), train[rows]  # in float32, the normal equations are too coarse
    fits = []
    for strength in tried:
        model = Ridge(alpha=1 / strength).fit(x, y)
        weights, bias = model.coef_, float(model.intercept_)
        score = 0.0
        if not reason and validation is not None:
            score, _ = errors_of(validation, as_scores(_logits(features["val"], weights, bias))[None])
        fits.append((score, strength, weights, bias))
    _, strength, weights, bias = max(fits, key=lambda fit: fit[0])
    scores = {
        split: as_scores(_logits(values, weights, bias)) for split, values in features.items() if split != "train"
    }
    return Probe(strength, weights, bias, scores, tuple(notes))


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that have at most _BLOCK_CELLS numbers together."""
    step = max(1, _BLOCK_CELLS // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _labelled(features: Features, rows: NDArray[np.bool_]) -> Features:
    """Return the labelled rows; without a copy, which may have gigabytes, if these are all."""
    return features if rows.all() else features[rows]


def _logits(features: Features, weights: Floats, bias: Floats | float) -> Floats:
    """Return features @ weights + bias, without converting all features to double precision at once."""
    logits = np.empty((len(features), *weights.shape[1:]))
    for block in _blocks(*features.shape):
        logits[block] = features[block] @ weights + bias
    return logits


def _candidates(strengths: Sequence[float], reason: str | None) -> tuple[list[float], list[str]]:
    """Return the values of C to try, in ascending order, and notes; only the middle one if `val` cannot choose."""
    ordered = sorted(strengths)
    if not reason:
        return ordered, []
    return [ordered[len(ordered) // 2]], [f"strength not chosen on val: {reason}"]


def _logistic_fits(
    x: Features, y: NDArray[Any], strengths: Sequence[float]
) -> Iterator[tuple[float, Floats, Floats, int]]:
    """Yield each strength, the coefficients (C, F) and intercepts (C,), one of each for two classes, and iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)  # lbfgs; each fit starts from the one before
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # noted by the caller
            model.fit(x, y)
        yield strength, model.coef_.astype(np.float64), model.intercept_.astype(np.float64), int(model.n_iter_[0])


def _convergence(iterations: int) -> list[str]:
    return [f"not converged in {_MAX_ITERATIONS} iterations"] if iterations >= _MAX_ITERATIONS else []


def _class_scores(features: Features, weights: Floats, bias: Floats) -> Floats:
    """Return the log-odds of each class, (N, C)."""
    return as_scores(one_versus_rest(torch.from_numpy(_logits(features, weights.T, bias))).numpy())


def one_versus_rest(logits: Tensor) -> Tensor:
    """Return the log-odds log(p / (1 - p)) of softmax probabilities p.

    Classes can then be scored, calibrated and thresholded like independent labels; their order is that of p.

    Args:
        logits: (B, L), L at least 2.
    """
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits.log_softmax(1)
    # For the largest p, 1 - p would lose precision; the others are at most one half.
    rest = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))
    return rest.scatter(1, top, logits.gather(1, top) - others)


def knn_scores(bank: Features, targets: Floats, queries: Features, neighbours: int) -> Floats:
    """Return the share of positives among the nearest labelled images, each weighted by exp(cosine / 0.07).

    Images tied with the last neighbour share its weight, so that the result does not depend on the order of rows.

    Source: Wu et al. 2018, section 3.4.

    Args:
        bank: (N, F) features of the labelled images.
        targets: (N, L), 1, 0 or nan; rows in which a label is missing are not neighbours for it.
        queries: (M, F) features.
        neighbours: Number of neighbours; all labelled images if there are fewer.

    Returns:
        (M, L), 0 to 1, see `metrics.as_scores`; nan for a label without labelled rows.
    """
    result = np.full((len(queries), targets.shape[1]), np.nan)
    known = ~np.isnan(targets)
    rows = np.flatnonzero(known.any(1))  # n of the N
    # Labels that are missing in the same rows share their neighbours.
    patterns, pattern_of = np.unique(known[rows], axis=1, return_inverse=True)
    step = max(_LEAST_CHUNK, _CHUNK_CELLS // max(1, rows.size))
    matrix = torch.empty(min(step, len(queries)), rows.size, dtype=torch.float64)  # once: new memory is slow at first
    for start in range(0, len(queries), step):
        chunk = slice(start, start + step)
        cosines = cosine_similarities(queries[chunk], bank, None if rows.size == len(bank) else rows, matrix)  # (m, n)
        for number in np.flatnonzero(patterns.any(0)):
            keys, labels = np.flatnonzero(patterns[:, number]), np.flatnonzero(pattern_of.reshape(-1) == number)
            among = cosines if keys.size == rows.size else cosines[:, keys]
            weights, near = _nearest(among, min(neighbours, keys.size))  # (m, k)
            for label in labels:  # one by one: if most images are tied, k is almost n
                votes = torch.from_numpy(targets[rows[keys], label])[near]
                result[chunk, label] = ((weights * votes).sum(1) / weights.sum(1)).numpy()
    return as_scores(result)


def cosine_similarities(
    queries: Features, bank: Features, rows: NDArray[np.int64] | None = None, out: Tensor | None = None
) -> Tensor:
    """Return the cosines of queries and images in float64, so that copies of an image are equally near up to _TIE.

    Args:
        queries: (M, F) features.
        bank: (N, F) features of the images.
        rows: (n,) rows of the bank to use; all N if None.
        out: (M or more, n) memory for the result.

    Returns:
        (M, n).
    """
    units, count = _unit_length(queries), len(bank) if rows is None else len(rows)
    cosines = torch.empty(len(queries), count, dtype=torch.float64) if out is None else out[: len(queries)]
    for block in _blocks(count, bank.shape[1]):
        cosines[:, block] = units @ _unit_length(bank[block if rows is None else rows[block]]).T
    return cosines


def _unit_length(features: Features) -> Tensor:
    values = torch.from_numpy(features).to(torch.float64)
    unit: Tensor = values / values.norm(dim=1, keepdim=True).clamp_min_(1e-12)
    return unit


def _nearest(cosines: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the weights of the `count` nearest images and of all tied with the last, and their numbers, (m, k)."""
    near, index = cosines.topk(min(count + 1, cosines.shape[1]))  # (m, k + 1)
    last = near[:, count - 1, None]
    more = (near[:, count:] >= last - _TIE).any(1).nonzero()[:, 0]
    if len(
        more
    ):  # search for all ties only if there are any; row by row, since summing booleans takes 9 bytes for each
        near, index = cosines.topk(max(int((cosines[row] >= last[row] - _TIE).count_nonzero()) for row in more))
    above, tied = near > last + _TIE, (near - last).abs() <= _TIE
    room = (count - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return ((near - near[:, :1]) / KNN_TEMPERATURE).exp() * (above + room * tied), index


def knn_auroc(scores: Floats, targets: Floats, validation: Floats) -> list[float]:
    """Return the AUROC of each label's kNN scores; nan if it has one class in either split.

    Args:
        scores: (M, L) of `val`, see `knn_scores`.
        targets: (N, L) of `train`.
        validation: (M, L) targets of `val`.
    """
    return [
        float("nan") if undefined(known) else auroc(truth, score)
        for known, truth, score in zip(targets.T, validation.T, scores.T, strict=True)
    ]
