"""Propose the next trial of a search, as a pure function of the seed and the trials so far.

Optuna proposes it by expected improvement under a Gaussian process (Jones et al. 1998, doi:10.1023/A:1008306431147),
which needs the fewest trials. For each proposal it receives all trials again and a new seed, so that a search resumes
as if it had not been stopped, without any stored state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medmoco.config import Possible, Range, Tree, field_of
from medmoco.errors import SettingsError
from medmoco.utils.rng import PROPOSAL, hashed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = Mapping[str, Possible]

_BLIND = 5  # random trials before proposals use their results
_DIGITS = 3  # significant digits of a proposed number; more would not improve the result
_ATTEMPTS = 200  # after this number of proposals that were all tried before, the space counts as exhausted


@dataclass(frozen=True)
class Trial:
    """One pretraining run of a search."""

    number: int  # from 0, the trial with the settings as given
    values: Tree  # of the searched settings
    score: float | None = None  # mean validation kNN AUROC of the labels; None if the trial failed
    low: float | None = None  # lower bound of its 95 % interval
    high: float | None = None  # its upper bound
    seconds: float = 0.0  # since the trial was last started
    failed: str | None = None  # why it has no score


def require_optuna() -> None:
    """Raise SettingsError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise SettingsError("medmoco tune needs Optuna: pip install 'optuna>=5'") from None


def ends_of(key: str, possible: Possible) -> list[Any]:
    """Return all choices, or both ends of a range: the values to check before a search."""
    if not isinstance(possible, Range):
        return list(possible)
    return [_number(key, end) for end in (possible.low, possible.high)]


def propose(space: Space, trials: Sequence[Trial], seed: int) -> Tree | None:
    """Return the values of the trial after `trials`; None if the whole space has been tried."""
    for attempt in range(_ATTEMPTS):
        draw = int(hashed(seed, PROPOSAL, len(trials), attempt)[0] >> np.uint64(33))
        known = trials if attempt == 0 and len(trials) >= _BLIND else ()  # a repeated proposal is replaced at random
        values = _ask(space, known, draw)
        if all(values != trial.values for trial in trials):
            return values
    return None


def _ask(space: Space, trials: Sequence[Trial], seed: int) -> Tree:
    """Return a proposal from trials, or a random one if there are none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(key, possible) for key, possible in space.items()}
    samplers = optuna.samplers
    sampler = samplers.GPSampler(seed=seed, n_startup_trials=1) if trials else samplers.RandomSampler(seed=seed)
    search = optuna.create_study(direction="maximize", sampler=sampler)
    worst = min((trial.score for trial in trials if trial.score is not None), default=0.0)
    for trial in trials:
        parameters = {key: _position(possible, trial.values[key]) for key, possible in space.items()}
        if None in parameters.values():
            continue  # settings as given may lie outside the space
        value = worst if trial.score is None else trial.score  # a failed trial counts as the worst of the others
        search.add_trial(optuna.create_trial(value=value, params=parameters, distributions=distributions))
    asked = search.ask(distributions)
    return {key: _value(key, possible, asked.params[key]) for key, possible in space.items()}


def _distribution(key: str, possible: Possible) -> BaseDistribution:
    from optuna import distributions

    if not isinstance(possible, Range):  # by their positions, since choices may be lists
        return distributions.CategoricalDistribution(range(len(possible)))
    low, high = ends_of(key, possible)
    if _is_whole(key):
        return distributions.IntDistribution(int(low), int(high), log=possible.log)
    return distributions.FloatDistribution(low, high, log=possible.log)


def _value(key: str, possible: Possible, position: Any) -> Any:
    if not isinstance(possible, Range):
        return possible[position]
    rounded = float(f"{position:.{_DIGITS}g}")
    return _number(key, min(max(rounded, possible.low), possible.high))


def _position(possible: Possible, value: Any) -> Any:
    if isinstance(possible, Range):
        return value if isinstance(value, int | float) and possible.low <= value <= possible.high else None
    return next((place for place, choice in enumerate(possible) if choice == value), None)


def _is_whole(key: str) -> bool:
    field = field_of(key.split("."))
    return field is not None and field.annotation is int


def _number(key: str, number: float) -> float | int:
    return int(number) if _is_whole(key) and float(number).is_integer() else number
