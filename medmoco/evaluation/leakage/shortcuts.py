"""Shortcuts: traits that predict a label without the image's content, such as its shape or its file's format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmoco.data.manifest.manifest import Split
from medmoco.data.quality.findings import Shortcut
from medmoco.evaluation.metrics.auroc import Floats, auroc, bootstrap_auroc, interval

_DRAWS = 1000


def find_shortcuts(splits: Sequence[Split], traits: Mapping[str, Floats], seed: int = 0) -> list[Shortcut]:
    """Score every trait against every label, and return the strongest trait of each, with its interval.

    Args:
        splits: Loaded together; their rows are pooled, R in all.
        traits: (R,) values by name; nan where nothing is known.
        seed: Of the draws of patients.

    Returns:
        One for each label that has both classes, strongest first.
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
        turned = traits[trait] if defined[trait] >= 0.5 else -traits[trait]
        draws = bootstrap_auroc(known[trait], np.nan_to_num(turned), patients, draws=_DRAWS, seed=seed)
        low, high, _ = interval(draws)
        tested = auroc(known[trait][is_test], turned[is_test])
        found.append(
            Shortcut(
                label=name,
                trait=trait,
                auroc=max(defined[trait], 1 - defined[trait]),
                low=low,
                high=high,
                on_test=None if math.isnan(tested) else tested,
            )
        )
    return sorted(found, key=lambda one: -one.auroc)
