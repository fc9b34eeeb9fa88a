"""The kNN scores of a pretraining run: keep the checkpoint with the best one, and stop when they no longer improve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medmoco.config import BEST, RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError, Stopped
from medmoco.training.agreement import from_first, on_first
from medmoco.training.checkpoint import checkpoint_file, keep_as_best, keep_only
from medmoco.training.engine import TrainState
from medmoco.training.optim import learning_rate
from medmoco.training.run_folder import CHECKPOINTS
from medmoco.training.runlog import KNN
from medmoco.training.session import TrainingSession

Measure = Callable[[int, Callable[[], bool]], dict[str, float] | None]
"""Scores the encoder after an epoch, by label. Receives the epoch and a function that returns whether to stop; returns
None if it was stopped, and nothing if no score is possible."""


@dataclass(frozen=True)
class Score:
    """One kNN score: the mean AUROC over the labels on val, 0 to 1, after an epoch from 0 and as many steps."""

    value: float
    epoch: int
    step: int


@dataclass
class History:
    """What a run remembers of its scores; in every checkpoint, so that a resumed run decides as if uninterrupted."""

    best: Score | None = None  # the first of equals
    last: Score | None = None
    since: int = 0  # number of scores after the best one

    def take(self, score: Score) -> None:
        """Add the next score."""
        self.last = score
        if self.best is None or score.value > self.best.value:
            self.best, self.since = score, 0
        else:
            self.since += 1

    def as_content(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> History:
        """Return what `as_content` described."""
        best, last = (Score(**content[name]) if content[name] else None for name in ("best", "last"))
        return cls(best, last, content["since"])


@dataclass
class Selection:
    """A run in progress whose encoder is scored every `train.knn_every` epochs."""

    session: TrainingSession
    measure: Measure
    history: History = field(default_factory=History)
    _was_stopped: bool = field(init=False, default=False)  # in the last score, which the resumed run repeats

    def restore(self) -> None:
        """Continue with the scores in the checkpoint; score its epoch if the run was stopped before that."""
        session, step = self.session, self.session.state.step
        if not session.checkpoint or "knn" not in session.checkpoint:  # a new run, or one of an earlier version
            return
        self.history = History.restored(session.checkpoint["knn"])
        best, last = self.history.best, self.history.last
        if best and not from_first(session.context.group, lambda: self._is_kept(best.step)):
            session.log.warn(f"the best checkpoint, of step {best.step}, is gone; the next score counts as the best")
            self.history = History(last=last)
        epochs, rest = divmod(step, session.order.steps_per_epoch)
        if not epochs or rest or (last and last.step == step):
            return
        if values := self.after_epoch(epochs - 1, lambda: False):
            session.log.record(step, values)
            self.save(session.state)

    def _is_kept(self, step: int) -> bool:
        """Return whether the best checkpoint is that of a step; if the run was killed before that, it is made so."""
        out = self.session.context.settings.out
        kept = checkpoint_file(out / BEST, step)
        if not kept.exists() and checkpoint_file(out / CHECKPOINTS, step).exists():
            keep_as_best(out / CHECKPOINTS, step, out / BEST)
        keep_only(out / BEST, step)
        return kept.exists()

    def after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Return the scores of an epoch for the log, if they are due."""
        settings, group = self.session.context.settings, self.session.context.group
        every = settings.train.knn_every
        if not every or (epoch + 1) % every or not settings.data.labels:
            return {}
        values = from_first(group, lambda: self.measure(epoch, stop_asked), patiently=True)
        self._was_stopped = values is None
        if not values:
            return {}
        known = [value for value in values.values() if math.isfinite(value)]
        mean = sum(known) / len(known) if known else math.nan
        if known:
            self.history.take(Score(mean, epoch, self.session.state.step))
        return {"epoch": epoch, **values, KNN: mean}

    def must_save(self) -> bool:
        """Return whether the state has the best score so far."""
        best = self.history.best
        return best is not None and best.step == self.session.state.step

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and keep it as the best one if it is."""
        session, out = self.session, self.session.context.settings.out
        session.save(state, knn=self.history.as_content())
        if self.must_save():
            on_first(session.context.group, lambda: keep_as_best(out / CHECKPOINTS, state.step, out / BEST))

    def ended_early(self) -> bool:
        """Return whether the last `train.patience` scores were no better than one before."""
        patience = self.session.context.settings.train.patience
        return patience is not None and self.history.since >= patience

    def finish(self) -> None:
        """Log why training ended, and which checkpoints there are.

        Raises:
            Stopped: the last epoch was not scored.
        """
        session, train = self.session, self.session.context.settings.train
        step, steps, best = session.state.step, session.order.steps, self.history.best
        if self._was_stopped:
            raise Stopped(f"stopped after step {step} before its epoch was scored; everything is saved")
        if best and self.ended_early() and step < steps:
            rate = learning_rate(train, step / session.order.steps_per_epoch) / train.lr
            session.log.info(
                f"stopped early after step {step} of {steps} (train.patience): the last {self.history.since} kNN scores"
                f" are no better than {best.value:.3f} of epoch {best.epoch}; the learning rate is at {rate:.0%} of its"
                " peak"
            )
        else:
            session.log.info(f"done: {step} steps; the encoder is in the run folder's checkpoints/")
        if best:
            session.log.info(self._words(best))

    def _words(self, best: Score) -> str:
        last = self.history.last
        assert last
        found = f"best kNN score {best.value:.3f} (epoch {best.epoch}, step {best.step})"
        if best == last:
            return f"{found}, which is the last one too; its checkpoint is also in {BEST}/"
        return f"{found}, with its checkpoint in {BEST}/; last {last.value:.3f} (epoch {last.epoch}, step {last.step})"


def patience_refusals(settings: RunSettings, splits: Mapping[str, Split]) -> list[SettingsError]:
    """Return why `train.patience` cannot work with these labels: no label has both classes in both splits."""
    if not settings.train.patience:
        return []
    both = {0.0, 1.0}
    if "train" in splits and "val" in splits:
        columns = zip(splits["train"].labels.T.tolist(), splits["val"].labels.T.tolist(), strict=True)
        if any(both <= set(train) and both <= set(val) for train, val in columns):
            return []
        why = "no label has positive and negative images in both train and val"
    elif settings.data.labels:
        return []  # the splits cannot be read, which is refused elsewhere
    else:
        why = "data.labels names none"
    return [
        SettingsError(
            f"train.patience {settings.train.patience} needs kNN scores of labels, but {why};\n"
            "set data.labels to labels that can be scored, or train for all epochs",
            {"train.patience": "null"},
        )
    ]
