"""The best trial of a search, and the selection bias in its score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmoco.config import Tree
from medmoco.evaluation.metrics.auroc import Floats, interval, or_none
from medmoco.evaluation.scoring.table import span
from medmoco.tuning.proposals import Trial


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest score, the first of equals; None if none has a score."""
    return max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score or 0, default=None)


def optimism(scores: Floats, draws: Floats) -> float:
    """Return the selection bias: the expected excess of the best of several scores over its true value.

    In every bootstrap sample of patients the best trial is chosen as in the original sample; the estimate is the mean
    excess of its score there over its score in the original sample. It accounts for the choice of patients, not of
    seeds. If the trials differ little, it is about 0.7 of the bias, since they already differ by chance.

    Source: Efron and Tibshirani 1993, section 17.6, optimism, here of a choice.

    Args:
        scores: (T,) scores of the trials.
        draws: (T, D) bootstrap scores, with the same patients for all trials; nan if undefined.
    """
    draws = draws[:, ~np.isnan(draws).any(axis=0)]
    if not draws.size:
        return float("nan")
    chosen = draws.argmax(axis=0)
    return float((draws[chosen, np.arange(draws.shape[1])] - scores[chosen]).mean())


def compare(trials: Sequence[Trial], draws: Floats) -> Tree | None:
    """Compare the best of T trials with the settings as given, in plain values; None if no trial has a score.

    `draws` (T, D) are bootstrap scores, nan for trials that failed.
    """
    best, given = best_of(trials), trials[0]
    if best is None:
        return None
    scored = [trial.number for trial in trials if trial.score is not None]
    scores = np.array([trials[number].score for number in scored], np.float64)
    found: dict[str, Any] = {
        "trial": best.number, "values": best.values, "score": best.score, "low": best.low, "high": best.high,
        "given": given.score, "optimism": or_none(optimism(scores, draws[scored])),
        "gain": None, "gain_low": None, "gain_high": None,
    }  # fmt: skip
    if given.score is not None and best.score is not None and best is not given:
        limits = interval(draws[best.number] - draws[0])
        found |= {"gain": best.score - given.score, "gain_low": or_none(limits.low), "gain_high": or_none(limits.high)}
    return found


def words_of(values: Tree) -> str:
    """Write values as the command line takes them."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def line_of(trial: Trial) -> str:
    """Describe a trial in one line: score, interval, seconds, values."""
    result = "failed" if trial.score is None else f"{trial.score:.3f}"
    limits = "" if trial.score is None else span(trial.low, trial.high)
    what = f"{words_of(trial.values)}{' (as given)' if trial.number == 0 else ''}"
    reason = f"  ({trial.failed})" if trial.failed else ""
    return f"{trial.number:>5}  {result:<7}{limits:<17}{trial.seconds:>8.0f} s  {what}{reason}"


def table(trials: Sequence[Trial], winner: Tree | None, measured: str) -> str:
    """Return a table of all trials, the best first, and a verdict on the winner (see `compare`).

    `measured` is the name of the score.
    """
    ordered = sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0), trial.number))
    head = f"trial  {'score':<7}{'95 % interval':<17}{'':>8}    settings"
    return "\n".join([measured, head, *map(line_of, ordered), "", *_verdict(trials, winner)])


def _verdict(trials: Sequence[Trial], winner: Tree | None) -> list[str]:
    if winner is None:
        return ["No trial has a score."]
    scored = sum(trial.score is not None for trial in trials)
    if winner["trial"] == 0:
        return [f"No trial scored better than the settings as given ({scored} trials have a score)."]
    compared = "; the settings as given have no score"
    if winner["given"] is not None:
        limits = span(winner["gain_low"], winner["gain_high"], "+")
        compared = (
            f", compared with {winner['given']:.3f} for the settings as given: {winner['gain']:+.3f},"
            f" 95 % interval {limits}"
        )
    bias = "an unknown part" if winner["optimism"] is None else f"about {max(winner['optimism'], 0):.3f} or more"
    lines = [
        f"The winner is trial {winner['trial']}: {winner['score']:.3f}{compared}.",
        f"It was chosen on val as the best of {scored} trials: {bias} of its score is selection bias.",
    ]
    if winner["gain_low"] is not None and winner["gain_low"] <= 0:
        lines.append(
            "The interval contains 0: these patients do not show that the winner differs from the settings as given."
        )
    return [
        *lines, "Only test is an unbiased score: pretrain with best.yaml and as given, then evaluate both with --test."
    ]  # fmt: skip
