"""The samples of every step, and each process's share of them; nothing is stored, see `utils.rng`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmoco.utils.rng import ORDER, SHUFFLE, SUBSTITUTE, hashed, permutation


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes."""

    rank: int = 0
    processes: int = 1

    def of(self, length: int) -> slice:
        """Return the positions of this process in a batch of `length`, which the processes divide evenly."""
        own = length // self.processes
        return slice(self.rank * own, (self.rank + 1) * own)


WHOLE = Share()


@dataclass(frozen=True)
class BatchKey:
    """Names one training batch of all processes: what a data worker needs to make its share of it."""

    step: int
    epoch: int
    samples: NDArray[np.int64]


def key_order(seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
    """Return the order in which the key encoder sees a step's batch: (B,) positions in the order of the queries.

    Batch norm then meets a query and its key in different company. Source: He et al. 2020, section 3.3.
    """
    return permutation(seed, SHUFFLE, step, length=batch_size)


def substitute(seed: int, epoch: int, sample: int, attempt: int, samples: int) -> int:
    """Return what takes the place of a sample whose image cannot be used: another of 0 .. samples - 1, of any.

    Which one depends on nothing else, so that the processes that make the two views of a pair come to the same.
    """
    return int(hashed(seed, SUBSTITUTE, epoch, sample, attempt)[0] % np.uint64(samples))


@dataclass(frozen=True)
class StepOrder:
    """The samples of every step of a run. An epoch's incomplete last batch is left out, another one each epoch."""

    seed: int
    samples: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def batch(self, step: int) -> BatchKey:
        """Return the batch of one step."""
        return next(self.from_step(step))

    def from_step(self, start: int) -> Iterator[BatchKey]:
        """Yield the batches of steps start, start + 1, ... to the end of the run."""
        step = start
        while step < self.steps:
            epoch, first = divmod(step, self.steps_per_epoch)
            order = permutation(self.seed, ORDER, epoch, length=self.samples)
            for batch in range(first, self.steps_per_epoch):
                yield BatchKey(step, epoch, order[batch * self.batch_size : (batch + 1) * self.batch_size])
                step += 1
