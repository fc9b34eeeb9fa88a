"""Intervals from draws of patients on one core: seconds for a million rows, against a loop over scikit-learn."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.turns import report, seconds_per_round
from medmoco.evaluation.metrics.auroc import bootstrap_auroc, bootstrap_average_precision
from medmoco.evaluation.metrics.significance import delong

DRAWS, ROUNDS = 1000, 3
SIZES = {10_000: (1000, 50), 1_000_000: (100, 2)}
"""Rows, and the draws that a round times: by medmoco, and by the loop."""

Floats = NDArray[np.float64]
Data = tuple[Floats, Floats, NDArray[np.int64]]
Metric = Callable[..., Any]


def run() -> None:
    """Print a table for each size and metric, then what a million rows take in full."""
    metrics = {
        "AUROC": (bootstrap_auroc, roc_auc_score),
        "average precision": (bootstrap_average_precision, average_precision_score),
    }
    for rows, draws in SIZES.items():
        data = _make(rows)
        for name, (ours, theirs) in metrics.items():
            _compare(f"{name}, {rows:,} rows of {rows // 3:,} patients, one core", data, ours, theirs, draws)
    for name, (ours, _) in metrics.items():
        busy = time.process_time()
        ours(*data, draws=DRAWS, seed=0)
        busy = time.process_time() - busy
        tracemalloc.start()
        ours(*data, draws=2, seed=0)
        held = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        print(f"{name}: {DRAWS} draws of {rows:,} rows in {busy:.1f} s of CPU and {held:.0f} MB beside the data")
    busy = time.process_time()
    delong(data[0], np.stack([data[1], -data[1]]))
    print(f"DeLong: two scores of {rows:,} rows in {time.process_time() - busy:.1f} s of CPU")


def _compare(title: str, data: Data, ours: Metric, theirs: Metric, draws: tuple[int, int]) -> None:
    contestants = {
        "loop over scikit-learn, weighted": partial(_loop, theirs, *data, draws=draws[1]),
        "medmoco": partial(ours, *data, draws=draws[0], seed=0),
    }
    times = seconds_per_round(contestants, ROUNDS)
    for name, drawn in zip(contestants, draws[::-1], strict=True):
        times[name] = [seconds * DRAWS / drawn for seconds in times[name]]
    report(title, times, per_round=DRAWS, unit="draws", reference="loop over scikit-learn, weighted")


def _loop(metric: Metric, targets: Floats, scores: Floats, patients: NDArray[np.int64], draws: int) -> None:
    """What one would write: the rows stay, and weigh how often their patient was drawn."""
    generator = np.random.default_rng(0)
    names = patients.max() + 1
    for _ in range(draws):
        counts = np.bincount(generator.integers(names, size=names), minlength=names)
        metric(targets, scores, sample_weight=counts[patients])


def _make(rows: int) -> Data:
    """A tenth is positive; three rows a patient."""
    generator = np.random.default_rng(0)
    targets = (generator.random(rows) < 0.1).astype(float)
    return targets, generator.normal(size=rows) + targets, np.arange(rows) // 3
