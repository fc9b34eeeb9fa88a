"""Linear probe and kNN on frozen features, and the draws of labelled patients they learn from.

Targets are 1, 0 or nan. nan is a missing label or a patient that was not drawn; such rows teach nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

from medmoco.data.manifest.splits import fraction_size, nested_places
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.metrics.auroc import as_scores, auroc, undefined

Floats = NDArray[np.float64]

KNN_TEMPERATURE = 0.07
"""Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4."""

_MAX_ITERATIONS = 2000
_CHUNK_CELLS = 2**22  # similarities held at once, 32 MiB
_TIE = float(np.finfo(np.float32).eps)  # cosines closer than this are equal, as far as float32 features can tell


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe's answers.

    Attributes:
        strength: The C chosen.
        weights: (F,), of standardised features.
        bias: Log-odds where all of them are 0.
        scores: Per split (N,), log-odds, see `metrics.as_scores`: probabilities would round to ties near 0 and 1.
            Decisions are at 0.
        notes: What was out of the ordinary.
    """

    strength: float
    weights: Floats
    bias: float
    scores: dict[str, Floats]
    notes: tuple[str, ...] = ()


class Standard(NamedTuple):
    """Features as probes learn from them: mean 0 and variance 1 over the images of `train`, labelled or not.

    Attributes:
        features: Per split (N, F).
        mean: (F,), subtracted.
        scale: (F,), divided by after that; 1 where a feature is constant.
    """

    features: dict[str, Features]
    mean: Floats
    scale: Floats


def draw_patients(patients: NDArray[np.int64], targets: Floats, *, fraction: float, seed: int, draw: int) -> Floats:
    """Keep the targets of a random share of patients, and make the others nan.

    A patient's place in the order depends only on (seed, draw, patient): a smaller share is always inside a larger
    one. Where the share holds one class only, the next patients of the order are added until it holds both.

    Args:
        patients: (N,) codes.
        targets: (N,), both classes present.
        fraction: Of the distinct patients, rounded, at least one.
        seed: Of the run.
        draw: Number of the draw.

    Returns:
        (N,) targets.
    """
    if fraction == 1:
        return targets
    codes, inverse = np.unique(patients, return_inverse=True)
    row_place = nested_places(codes, seed=seed, draw=draw)[inverse]
    first_of_each = [row_place[targets == value].min() for value in (0, 1)]
    count = max(fraction_size(fraction, codes.size), *(int(first) + 1 for first in first_of_each))
    return np.where(row_place < count, targets, np.nan)


def standardise(features: Mapping[str, Features]) -> Standard:
    """Bring all features to one scale.

    Args:
        features: Per split (N, F); `train` must be among them.
    """
    scaler = StandardScaler().fit(features["train"])
    scaled = {split: scaler.transform(values).astype(np.float32, copy=False) for split, values in features.items()}
    return Standard(scaled, scaler.mean_, scaler.scale_)


def linear_probe(
    features: Mapping[str, Features], train: Floats, validation: Floats | None, strengths: Sequence[float]
) -> Probe:
    """Fit logistic regression on `train`, its strength chosen by the AUROC on `val`, never on `test`.

    Equal AUROCs choose the strongest regularisation. Where validation cannot tell, the middle strength is taken.

    Args:
        features: Per split (N, F), standardised.
        train: Targets of `train`, both classes present.
        validation: Targets of `val`; None where there is no such split.
        strengths: Values of C to choose from.
    """
    rows = ~np.isnan(train)
    x, y = features["train"][rows], train[rows]
    ordered = sorted(strengths)
    notes = []
    reason = "no such split" if validation is None else undefined(validation)
    if reason:
        notes.append(f"strength not chosen on val: {reason}")
        ordered = [ordered[len(ordered) // 2]]
    fits = []
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)  # lbfgs; each fit starts from the one before
    for strength in ordered:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # noted below
            model.fit(x, y)
        weights, bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
        score = 0.0 if reason or validation is None else auroc(validation, as_scores(features["val"] @ weights + bias))
        fits.append((score, strength, weights, bias, int(model.n_iter_[0])))
    _, strength, weights, bias, iterations = max(fits, key=lambda fit: fit[0])  # the first of equals
    if iterations >= _MAX_ITERATIONS:
        notes.append(f"not converged in {_MAX_ITERATIONS} iterations")
    scores = {split: as_scores(values @ weights + bias) for split, values in features.items() if split != "train"}
    return Probe(strength, weights, bias, scores, tuple(notes))


def knn_scores(bank: Features, targets: Floats, queries: Features, neighbours: int) -> Floats:
    """Return the share of positives among the nearest labelled images, each weighted by exp(cosine / 0.07).

    Images as near as the last neighbour share the places that are left, so that no order of rows decides.

    Source: Wu et al. 2018, section 3.4.

    Args:
        bank: (N, F) features of the labelled images.
        targets: (N, L), 1, 0 or nan; a label's missing rows are not its neighbours.
        queries: (M, F).
        neighbours: How many; all where the label has fewer.

    Returns:
        (M, L), 0 to 1, see `metrics.as_scores`; nan for a label without any labelled row.
    """
    result = np.full((len(queries), targets.shape[1]), np.nan)
    asked, known = _unit(queries), ~np.isnan(targets)
    # Labels that are missing in the same rows share their neighbours.
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        rows, labels = np.flatnonzero(patterns[:, number]), np.flatnonzero(pattern_of.reshape(-1) == number)
        if not rows.size:
            continue
        chosen, votes = _unit(bank[rows]), torch.from_numpy(targets[np.ix_(rows, labels)])  # (n, F), (n, l)
        count = min(neighbours, rows.size)
        step = max(1, _CHUNK_CELLS // rows.size)
        for start in range(0, len(asked), step):
            weights = _neighbour_weights(asked[start : start + step] @ chosen.T, count)  # (m, n)
            answer = weights @ votes / weights.sum(1, keepdim=True)
            result[np.ix_(np.arange(start, start + len(answer)), labels)] = answer.numpy()
    return as_scores(result)


def _unit(features: Features) -> Tensor:
    """Return features of unit length in float64: copies of an image are then equally near in all digits that count."""
    return normalize(torch.from_numpy(features).double(), dim=1)


def _neighbour_weights(cosines: Tensor, count: int) -> Tensor:
    """Return how much each of n images counts for each of m queries, (m, n), 0 for all but the neighbours.

    Args:
        cosines: (m, n).
        count: Of neighbours.
    """
    near, index = cosines.topk(min(count + 1, cosines.shape[1]))  # (m, k + 1)
    last = near[:, count - 1, None]
    if (near[:, count:] >= last - _TIE).any():  # who else is as near is sought only where somebody is
        near, index = cosines.topk(int((cosines >= last - _TIE).sum(1).max()))
    above, tied = near > last + _TIE, (near - last).abs() <= _TIE
    room = (count - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    weights = ((near - near[:, :1]) / KNN_TEMPERATURE).exp() * (above + room * tied)
    return torch.zeros_like(cosines).scatter_(1, index, weights)


def knn_auroc(scores: Floats, targets: Floats, answers: Floats) -> list[float]:
    """Return one AUROC per label of kNN scores: the monitor of a pretraining run.

    Args:
        scores: (M, L) of `val`, see `knn_scores`.
        targets: (N, L) of `train`.
        answers: (M, L) of `val`.

    Returns:
        L numbers; nan where a label has one class in either split.
    """
    return [
        float("nan") if undefined(targets[:, label]) else auroc(answers[:, label], scores[:, label])
        for label in range(targets.shape[1])
    ]
