"""The default linear probe against the published one, in one run: the same encoder, rows and labels.

`python -m benchmarks.probes --config F --encoder RUN [--fraction 0.05] [--epochs 100] [KEY=VALUE]...`

Default: features once, then logistic regression, its strength chosen on val. Published: SGD on a linear layer over the
frozen encoder, with crops and mirroring, 100 epochs, scored on val after each (`main_lincls.py` of
facebookresearch/moco). Both learn from the patients that `--fraction` draws, and are compared on test by one bootstrap.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.config import RunSettings, load
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import extract
from medmoco.evaluation.features.probes import linear_probe, standardise
from medmoco.evaluation.metrics.auroc import auroc, bootstrap_auroc, interval
from medmoco.evaluation.supervised.finetune import finetune
from medmoco.evaluation.supervised.training_labels import TrainingLabels, load_training_labels
from medmoco.training.device import choose_device

Floats = NDArray[np.float64]


def run(settings: RunSettings, encoder: str) -> None:
    """Print times and scores of both."""
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = finetune(settings, encoder, Path(folder) / "run", splits=("val", "test"))
    published_seconds = time.perf_counter() - start
    assert found  # this process is alone
    splits = found.splits
    _, labels, _ = load_training_labels(settings, encoder)
    start = time.perf_counter()
    scores = _default(settings, encoder, labels, splits)
    seconds = time.perf_counter() - start
    print(
        f"{len(labels.train)} training rows, {len(splits['val'])} of val, {len(splits['test'])} of test;"
        f" {settings.model.backbone}, {choose_device(settings.train).type}"
    )
    print(f"features once, logistic regression: {seconds:8.1f} s")
    print(f"published SGD, {settings.finetune.epochs:3} epochs:         {published_seconds:8.1f} s")
    print(f"ratio: {published_seconds / seconds:.1f}")
    for number, label in enumerate(labels.names):
        _compare(label, scores[:, number], found.scores["test"][:, number], splits["test"], number, settings)


def _default(settings: RunSettings, encoder: str, labels: TrainingLabels, splits: dict[str, Split]) -> Floats:
    """Return the scores of test, (N, L)."""
    device = choose_device(settings.train)
    backbone = load_encoder(encoder, settings).module
    backbone.to(device)
    rows = {"train": labels.train, **splits}
    features = {name: extract({"": backbone}, split, settings, device).features[""] for name, split in rows.items()}
    standard = standardise(features).features
    answers = [
        linear_probe(
            standard,
            labels.targets[:, number].astype(np.float64),
            splits["val"].labels[:, number].astype(np.float64),
            settings.evaluate.strengths,
        ).scores["test"]
        for number in range(len(labels.names))
    ]
    return np.stack(answers, axis=1)


def _compare(label: str, ours: Floats, theirs: Floats, test: Split, number: int, settings: RunSettings) -> None:
    targets = test.labels[:, number].astype(np.float64)
    options: dict[str, Any] = {"draws": settings.evaluate.bootstrap, "seed": settings.seed}
    draws = [bootstrap_auroc(targets, scores, test.patients, **options) for scores in (ours, theirs)]
    for name, scores, drawn in zip(("default", "published"), (ours, theirs), draws, strict=True):
        low, high, _ = interval(drawn)
        print(f"{label}, {name:9}: AUROC {auroc(targets, scores):.3f} ({low:.3f} to {high:.3f})")
    low, high, _ = interval(draws[0] - draws[1])
    print(f"{label}, difference: {auroc(targets, ours) - auroc(targets, theirs):+.3f} ({low:+.3f} to {high:+.3f})")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="the default linear probe against the published one")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--fraction", type=float, default=0.05, help="of the training patients [0.05]")
    parser.add_argument("--epochs", type=int, default=100, help="of the published probe [100]")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args(sys.argv[1:])
    own = [
        "finetune.protocol=linear_sgd", f"finetune.label_fraction={arguments.fraction}",
        f"finetune.epochs={arguments.epochs}",
    ]  # fmt: skip
    run(load(arguments.config, [*own, *arguments.overrides]), arguments.encoder)


if __name__ == "__main__":
    main()
