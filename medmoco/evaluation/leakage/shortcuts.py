"""Shortcuts: properties that predict a label without the image's content, such as its shape or file format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmoco.data.manifest.manifest import Split
from medmoco.data.quality.findings import Shortcut
from medmoco.evaluation.metrics.auroc import Floats, auroc, bootstrap_auroc, interval, or_none

_DRAWS = 1000


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
