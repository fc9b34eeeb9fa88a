"""Shortcuts: properties that predict a label without the image's content, such as its shape, file format or source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, TargetEncoder
from sklearn.tree import DecisionTreeClassifier

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.data.quality.findings import Provenance, Shortcut
from medmoco.data.quality.margins import Margins
from medmoco.evaluation.leakage.provenance import Mask, Predictor, remedy, rows_at
from medmoco.evaluation.metrics.auroc import Floats, Integers, auroc, bootstrap_auroc, interval, or_none

_DRAWS = 1000
_FOLDS = 5
_MOST = 2000  # rows of each class of a label that are tested; the standard error of an AUROC is then below 0.01
_FEWEST = 2 * _FOLDS  # patients of each class, so that every fold has some
_LEVEL = 0.025  # probability that chance alone passes the bound, over all traits and labels together
_NAMED = 6  # columns or labels that a note names


def find_shortcuts(splits: Sequence[Split], traits: Mapping[str, Floats], seed: int = 0) -> list[Shortcut]:
    """Return the most predictive trait of each label that has both classes, with its interval, strongest first.

    Args:
        splits: Splits loaded together; their R rows are pooled.
        traits: (R,) values by name; nan if unknown.
        seed: Random seed of the draws of patients.
    """
    labels = np.concatenate([split.labels for split in splits]).astype(np.float64)
    patients = np.concatenate([split.patients for split in splits])
    is_test = np.concatenate([np.full(len(split), split.name == "test") for split in splits])
    found = []
    for name, column in zip(splits[0].label_names, labels.T, strict=True):
        known = {trait: np.where(np.isnan(values), np.nan, column) for trait, values in traits.items()}
        scores = {trait: auroc(known[trait], values) for trait, values in traits.items()}
        defined = {trait: score for trait, score in scores.items() if not math.isnan(score)}
        if not defined:
            continue
        trait = max(defined, key=lambda one: abs(defined[one] - 0.5))
        signed = traits[trait] if defined[trait] >= 0.5 else -traits[trait]
        draws = bootstrap_auroc(known[trait], np.nan_to_num(signed), patients, draws=_DRAWS, seed=seed)
        low, high, _ = interval(draws)
        tested = auroc(known[trait][is_test], signed[is_test])
        found.append(
            Shortcut(
                label=name,
                trait=trait,
                auroc=max(defined[trait], 1 - defined[trait]),
                low=low,
                high=high,
                on_test=or_none(tested),
            )
        )
    return sorted(found, key=lambda one: -one.auroc)


def find_provenance(
    splits: Sequence[Split], settings: RunSettings, margins: Margins, readable: Mask, seed: int = 0
) -> Provenance:
    """Predict each label from what says where an image comes from, by probes that are cross-validated by patient.

    A label with many rows is tested on a random sample of each class, which does not change the AUROC that is expected.

    Args:
        splits: Splits loaded together; their R rows are pooled.
        settings: Settings of their labels and of the evaluation.
        margins: (R, 88) uint8, see `margins.margins`.
        readable: (R,) bool, whether the file could be read.
        seed: Random seed of sample, folds and draws of patients.
    """
    labels = np.concatenate([split.labels for split in splits])
    patients = np.concatenate([split.patients for split in splits])
    is_test = np.concatenate([np.full(len(split), split.name == "test") for split in splits])
    samples = {
        name: at
        for name, column in zip(splits[0].label_names, labels.T, strict=True)
        if (at := _sample(column, patients, seed)).size
    }
    if not samples:
        return Provenance(notes=tuple(_notes((), splits[0].label_names, samples)))
    at = np.unique(np.concatenate([*samples.values()]))
    rows = rows_at(splits, at, margins, readable)
    predictors = list(rows.predictors(settings))
    found = []
    for name, own in samples.items():
        where = np.searchsorted(at, own)
        targets = labels[own, splits[0].label_names.index(name)].astype(np.float64)
        folds = _folds(targets, patients[own], seed)
        bound = _chance_bound(targets, patients[own], len(predictors) * len(samples))
        for predictor in predictors:
            scores = _out_of_fold(predictor, where, targets, folds)
            known = np.where(np.isnan(scores), np.nan, targets)
            value, low, high = auroc(known, scores), math.nan, math.nan
            if math.isnan(value):
                continue
            if value >= bound:  # the others do not warn, whatever their intervals
                draws = bootstrap_auroc(known, np.nan_to_num(scores), patients[own], draws=_DRAWS, seed=seed)
                low, high, _ = interval(draws)
            tested = or_none(auroc(known[is_test[own]], scores[is_test[own]]))
            one = Shortcut(name, predictor.name, value, low, high, tested, bound, predictor.about)
            found.append(replace(one, remedy=remedy(predictor, name, splits, settings)) if one.warns else one)
    return Provenance(
        sorted(found, key=lambda one: -one.auroc),
        tuple(dict.fromkeys(predictor.about for predictor in predictors)),
        tuple(_notes(rows.possible_findings(settings), splits[0].label_names, samples)),
    )


def _sample(column: NDArray[np.float32], patients: Integers, seed: int) -> Integers:
    """Return the positions of up to `_MOST` rows of each class; none if a class has too few patients for a test."""
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(column == value) for value in (0, 1)]
    if min(np.unique(patients[rows]).size for rows in classes) < _FEWEST:
        return np.empty(0, np.int64)
    return np.sort(np.concatenate([generator.permutation(rows)[:_MOST] for rows in classes]))


def _folds(targets: Floats, patients: Integers, seed: int) -> list[Mask]:
    """Return the test rows of each fold; patients are kept together, and those with positives are spread evenly."""
    names, codes = np.unique(patients, return_inverse=True)
    positive = np.bincount(codes, targets, names.size) > 0
    positive &= min(positive.sum(), (~positive).sum()) >= _FOLDS  # fewer cannot be spread
    splitter = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)  # by group, it takes seconds for each label
    return [np.isin(codes, test) for _, test in splitter.split(names, positive)]


def _chance_bound(targets: Floats, patients: Integers, tests: int) -> float:
    """Return the AUROC that the best of some tests exceeds by chance with probability `_LEVEL` at most (Bonferroni).

    Source: variance of the Mann-Whitney statistic without a difference (Mann and Whitney 1947), for the effective
    number of patients, which is smaller if some have many more images than others (Kish 1965, Survey Sampling).
    """
    images = [np.unique(patients[targets == value], return_counts=True)[1] for value in (1, 0)]
    positives, negatives = (counts.sum() ** 2 / (counts**2).sum() for counts in images)
    deviation = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return 0.5 + NormalDist().inv_cdf(1 - _LEVEL / tests) * deviation


def _out_of_fold(predictor: Predictor, where: Integers, targets: Floats, folds: Sequence[Mask]) -> Floats:
    """Return the log-odds (N,) that a probe fitted on the other folds predicts, relative to their share of positives.

    They are nan where the predictor is unknown and the probe cannot use that.
    """
    values = predictor.values[where]
    usable = ~np.isnan(values).any(axis=1) if predictor.kind == "pixels" else np.ones(len(values), bool)
    scores: Floats = np.full(len(values), np.nan)
    for test in folds:
        train, applied = usable & ~test, usable & test
        if applied.any() and np.unique(targets[train]).size == 2:
            shares = np.clip(_fit(predictor, values[train], targets[train], values[applied]), 1e-6, 1 - 1e-6)
            prior = targets[train].mean()  # differs between folds, which must not rank their rows
            scores[applied] = np.log(shares / (1 - shares)) - np.log(prior / (1 - prior))
    return scores


def _fit(predictor: Predictor, train: Floats, targets: Floats, applied: Floats) -> Floats:
    """Fit the probe of a predictor's kind; return the share of positives that it predicts for other rows."""
    if predictor.kind == "categories":
        encoder: Any = TargetEncoder(target_type="binary").fit(train, targets)
        encoded: Floats = encoder.transform(applied)[:, 0]
        return encoded
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    if predictor.kind == "numbers":
        model = DecisionTreeClassifier(max_depth=4, min_samples_leaf=max(5, len(train) // 50), random_state=0)
    shares: Floats = model.fit(train, targets).predict_proba(applied)[:, 1]
    return shares


def _notes(findings: Sequence[str], labels: Sequence[str], samples: Mapping[str, Integers]) -> Iterator[str]:
    """Yield what was not tested, or not on all rows."""
    if any(at.size >= _MOST for at in samples.values()):
        yield f"sources were tested on a random sample of at most {_MOST:,} rows of each class of a label"
    if findings:
        yield f"columns of 0 and 1 may be findings and were not tested: {_few(findings)}"
    if untested := [label for label in labels if label not in samples]:
        yield f"fewer than {_FEWEST} patients have or lack these labels, which were not tested: {_few(untested)}"


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
