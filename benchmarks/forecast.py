"""Forecasts from few labels against the scores with more labels, on the same images.

`python -m benchmarks.forecast --config F --encoder NAME=RUN... [--draws 10] [--test] [KEY=VALUE]...`

Curves are fitted to the fractions of `evaluate.fractions` up to a cut, and predict the larger ones. Without `--test`,
both kinds of power laws and their combination are compared on val, where the combination was chosen; with it, the
combination is checked on test.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, load
from medmoco.evaluation.metrics.auroc import interval, share_interval
from medmoco.evaluation.scoring.forecast import Measured, fit
from medmoco.evaluation.scoring.scoring import Key, draw_labels, predict_linear, score_all
from medmoco.evaluation.scoring.study import begin
from medmoco.evaluation.scoring.table import MACRO, span

FORMS = {"a free": slice(0, 1), "a = 0": slice(1, 2), "both": slice(0, 2)}
"""Rows of `PowerLaws`."""


class Check(NamedTuple):
    """A forecast and what was observed."""

    key: Key
    cut: float
    fraction: float
    forecast: float
    ends: tuple[float, float]
    observed: float
    gain: float
    gain_ends: tuple[float, float]
    observed_gain: float

    @property
    def interval_score(self) -> float:
        """Width of the gain's interval plus 40 times what it misses; lower is better. Gneiting and Raftery 2007."""
        (low, high), seen = self.gain_ends, self.observed_gain
        return high - low + 2 / 0.05 * (max(low - seen, 0) + max(seen - high, 0))


def measure(settings: RunSettings, encoders: dict[str, str], draws: int, *, test: bool) -> Measured:
    """Return the scores of linear probes by fraction, as `medmoco curve` computes them."""
    study = begin(settings, encoders, test=test, log=print)
    measured = {}
    for fraction in sorted(set(settings.evaluate.fractions)):
        chosen = settings.evaluate.model_copy(update={"label_fraction": fraction, "label_draws": draws})
        share = settings.model_copy(update={"evaluate": chosen})
        labels = draw_labels(study.splits["train"], share)
        found = {k: v for name in study.encoders for k, v in predict_linear(study, name, labels, share).items()}
        measured[fraction] = score_all(study, ["linear"], study.encoders, found, labels, share)
    return measured


def check(measured: Measured, split: str, cuts: Iterable[float], form: slice, seed: int) -> Iterable[Check]:
    """Yield forecasts from the fractions up to each cut for the larger ones."""
    for key in (key for key in measured[max(measured)] if key.split == split and key.label != MACRO):
        whole = fit(key, measured, seed)
        for cut in cuts:
            fitted = fit(key, {f: scored for f, scored in measured.items() if f <= cut}, seed)
            if fitted.laws is None:
                print(f"{key.label}, {key.encoder}, up to {cut:.0%}: {fitted.undefined}")
                continue
            now: NDArray[np.float64] = fitted.errors[:, -1]
            for at, fraction in enumerate(whole.fractions):
                if fraction > cut:
                    errors = fitted.laws.errors(whole.sizes[[at]])[0, form]
                    value, observed = float(1 - errors[:, 0].mean()), float(1 - whole.errors[0, at])
                    low, high, _ = share_interval(value, 1 - errors[:, 1:].ravel())
                    ends = interval((now - errors)[:, 1:].ravel())[:2]
                    gain, seen = value - (1 - now[0]), observed - (1 - now[0])
                    yield Check(key, cut, fraction, value, (low, high), observed, float(gain), ends, float(seen))


def _head(*names: str) -> None:
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")


def main() -> None:
    """Read the arguments, and print the tables."""
    parser = argparse.ArgumentParser(description="forecasts from few labels against scores with more")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--encoder", action="append", default=[], help="NAME=RUN; repeatable")
    parser.add_argument("--draws", type=int, default=10, help="of labelled patients [10]")
    parser.add_argument("--cuts", type=float, nargs="+", default=[0.1, 0.2, 0.5], help="largest fractions fitted")
    parser.add_argument("--test", action="store_true", help="check on the test set")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    settings = load(given.config, given.overrides)
    encoders = dict(each.split("=", 1) for each in given.encoder)
    measured = measure(settings, encoders, given.draws, test=given.test)
    split = "test" if given.test else "val"
    _head("form", "forecasts", "mean error", "interval score", "coverage of the gain", "of the score")
    for name, form in FORMS.items() if not given.test else [("both", FORMS["both"])]:
        found = list(check(measured, split, given.cuts, form, settings.seed))
        errors = [abs(each.forecast - each.observed) for each in found]
        scores = [each.interval_score for each in found]
        gains = [each.gain_ends[0] <= each.observed_gain <= each.gain_ends[1] for each in found]
        held = [each.ends[0] <= each.observed <= each.ends[1] for each in found]
        cells = [
            f"{np.mean(errors):.4f}",
            f"{np.mean(scores):.4f}",
            *(f"{np.mean(each):.0%}" for each in (gains, held)),
        ]
        print(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    _head("label, encoder, fitted up to", "labels", "forecast", "observed", "gain, forecast", "observed")
    for each in found:
        miss = "" if each.gain_ends[0] <= each.observed_gain <= each.gain_ends[1] else " (outside)"
        print(
            f"| {each.key.label}, {each.key.encoder}, {each.cut:.0%} | {each.fraction:.0%} | {each.forecast:.3f}"
            f" ({span(*each.ends)}) | {each.observed:.3f} | {each.gain:+.3f} ({span(*each.gain_ends, '+')})"
            f" | {each.observed_gain:+.3f}{miss} |"
        )


if __name__ == "__main__":
    main()
