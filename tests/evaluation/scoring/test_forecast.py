"""Forecasts of made curves, whose scores with more labels are known."""

from __future__ import annotations

import numpy as np
import pytest

from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.records import Score
from medmoco.evaluation.scoring.forecast import forecast
from medmoco.evaluation.scoring.scoring import Key, Scored
from medmoco.evaluation.scoring.table import MACRO, forecast_blocks, needed_words

FRACTIONS = (0.01, 0.05, 0.1, 0.5, 1.0)
PATIENTS, DRAWS, BOOTSTRAP = 1000, 5, 200
LAWS = {"run": (0.05, 0.8, 0.5), "untrained": (0.05, 1.6, 0.5), "pixels": (0.3, 0.2, 0.5)}


def true_auroc(encoder: str, patients: float) -> float:
    a, b, c = LAWS[encoder]
    return float(1 - a - b * patients**-c)


def measured(seed: int, noise: float = 1.0, label: str = "A") -> dict[float, dict[Key, Scored]]:
    """Make scores whose test patients are all lucky or unlucky together, and whose draws of labels vary."""
    generator = np.random.default_rng([7, seed])
    luck, resampled = (noise * 0.02 * generator.normal(size=size) for size in (1, BOOTSTRAP))
    found: dict[float, dict[Key, Scored]] = {}
    for fraction in FRACTIONS:
        for encoder in LAWS:
            patients, draws = PATIENTS * fraction, DRAWS if fraction < 1 else 1
            own = noise * 0.3 * generator.normal(size=draws) / np.sqrt(patients)
            each = np.clip(true_auroc(encoder, patients) + luck + own, 0.01, 0.999)
            key = Key(label, "test", "linear", encoder)
            score = Score(
                **key._asdict(), auroc=float(each.mean()), auroc_low=None, auroc_high=None, average_precision=None,
                n=100, n_positive=50, n_patients=100, n_train_patients=(round(patients),) * draws,
            )  # fmt: skip
            of_draws = np.clip(each[:, None] + resampled, 0.01, 0.999)
            found.setdefault(fraction, {})[key] = Scored(score, of_draws.mean(axis=0), of_draws=of_draws)
    return found


def of(forecasts: list[Forecast], encoder: str) -> list[Forecast]:
    return [found for found in forecasts if found.encoder == encoder]


def test_forecast__recovers_curves_without_noise_within_what_the_asymptote_may_be() -> None:
    forecasts, needed = forecast(measured(0, noise=0), "run", seed=0)
    for encoder in LAWS:
        for found in of(forecasts, encoder):
            expected = true_auroc(encoder, found.n_train_patients)
            assert found.auroc == pytest.approx(expected, abs=0.012)  # the mean with the curve that never levels off
            assert found.gain == pytest.approx(found.auroc - true_auroc(encoder, PATIENTS))
            assert found.gain_low <= expected - true_auroc(encoder, PATIENTS) + 1e-3
        assert [found.n_train_patients for found in of(forecasts, encoder)] == [2000, 5000]
        assert [found.fraction for found in of(forecasts, encoder)] == [2, 5]
    for found in needed:
        a, b, _ = LAWS[found.control]
        above = 1 - found.auroc - a
        expected = (b / above) ** 2 if above > 0 else np.inf  # 4 times as many for the untrained network
        if found.control == "untrained" and 30 < expected < 2000:
            assert found.needed == pytest.approx(expected, rel=0.15)
        if found.control == "pixels" and found.fraction == 1:
            assert found.needed == found.most == 5000


def test_forecast__intervals_contain_the_true_scores() -> None:
    """95 % intervals also contain what a curve without asymptote would give, so that they miss less often."""
    held, gains, needed_held, widths = [], [], [], []
    for seed in range(30):
        forecasts, needed = forecast(measured(seed), "run", seed=seed)
        for found in (found for found in forecasts if found.auroc is not None):  # a level curve may happen to fall
            expected = true_auroc(found.encoder, found.n_train_patients)
            held.append(found.auroc_low <= expected <= found.auroc_high)
            widths.append(found.auroc_high - found.auroc_low)
            gains.append(found.gain_low <= expected - true_auroc(found.encoder, PATIENTS) <= found.gain_high)
        for found in needed:
            if found.control == "untrained" and found.fraction in (0.05, 0.1):
                needed_held.append(found.needed_low <= 4 * found.n_train_patients <= found.needed_high)
    assert np.mean(held) >= 0.9
    assert np.mean(gains) >= 0.88
    assert np.mean(needed_held) >= 0.85
    assert np.mean(widths) < 0.15  # and say something


def test_forecast__says_why_there_is_none() -> None:
    every = measured(0)
    forecasts, needed = forecast({fraction: every[fraction] for fraction in (0.1, 1.0)}, "run", seed=0)
    assert {found.undefined for found in forecasts} == {"fewer than 3 label fractions have a score"}
    assert {found.needed for found in needed} == {None}
    assert forecast_blocks(forecasts, needed, "patients") == [
        "no forecast for more labels: fewer than 3 label fractions have a score", "",
    ]  # fmt: skip
    worse = {
        fraction: {key: Scored(entry.score.model_copy(update={"auroc": 0.9 - fraction / 10}), entry.bootstrap,
                               of_draws=entry.of_draws) for key, entry in scores.items() if key.encoder == "run"}
        for fraction, scores in every.items()
    }  # fmt: skip
    assert {found.undefined for found in forecast(worse, "run", seed=0)[0]} == {
        "the score does not rise with more labels"
    }
    undefined = {
        fraction: {key: Scored(entry.score.model_copy(update={"auroc": None}), entry.bootstrap)
                   for key, entry in scores.items()}
        for fraction, scores in every.items()
    }  # fmt: skip
    assert forecast(undefined, "run", seed=0) == ([], [])
    assert forecast({}, "run", seed=0) == ([], [])


def test_forecast__of_the_mean_over_labels_counts_their_patients() -> None:
    both = {fraction: scores | {
        key._replace(label=MACRO): Scored(entry.score.model_copy(update={"label": MACRO, "n_train_patients": ()}),
                                          entry.bootstrap, of_draws=entry.of_draws)
        for key, entry in scores.items()
    } for fraction, scores in measured(1).items()}  # fmt: skip
    forecasts, _ = forecast(both, "run", seed=0)
    single, mean = ([(f.auroc, f.n_train_patients) for f in forecasts if f.label == label] for label in ("A", MACRO))
    assert single == mean


def test_forecast_blocks__are_narrow_and_end_with_the_caveat() -> None:
    lines = forecast_blocks(*forecast(measured(3), "run", seed=0), "patients")
    assert max(map(len, lines)) <= 120
    assert lines[0] == "forecast for test: A"
    assert lines[2].split()[:4] == ["linear", "run", "2", "x:"]
    assert " ".join(lines).endswith("more patients of the same kind; they are not guarantees.")
    (row,) = [line for line in lines if line.split()[:1] == ["1,000"]]
    assert ">5,000" in row


def test_needed_words__bounds_and_two_digits() -> None:
    def words(*values: float | None) -> str:
        key = {"label": "A", "split": "test", "method": "linear", "encoder": "run", "control": "pixels"}
        names = ("needed", "needed_low", "needed_high")
        return needed_words(LabelsNeeded(
            **key, fraction=0.1, n_train_patients=100.0, auroc=0.9, least=10.0, most=5000.0,
            **dict(zip(names, values, strict=True)),
        ))  # fmt: skip

    assert words(412.0, 10.0, 5000.0) == "410 (<10 to >5,000)"
    assert words(5000.0, 5000.0, 5000.0) == ">5,000"
    assert words(None, None, None) == "no forecast"
