"""The samples of every step and each process's share of them, computed without stored state; see `utils.rng`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmoco.utils.rng import ORDER, SHUFFLE, SUBSTITUTE, hashed, permutation


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes computes."""

    rank: int = 0
    processes: int = 1

    def of(self, length: int) -> slice:
        """Return the positions of this process in a batch of `length`, a multiple of the number of processes."""
        own = length // self.processes
        return slice(self.rank * own, (self.rank + 1) * own)


WHOLE = Share()


@dataclass(frozen=True)
class BatchKey:
    """Identifies one training batch of all processes: all a data worker needs to make its share of it."""

    step: int
    epoch: int
    samples: NDArray[np.int64]


def key_order(seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
    """Return the order in which the key encoder sees a step's batch: (B,) positions in the order of the queries.

    Batch norm then uses statistics over different samples for a query and for its key. Source: He et al. 2020, section
    3.3.
    """
    return permutation(seed, SHUFFLE, step, length=batch_size)


def substitute(seed: int, epoch: int, sample: int, attempt: int, samples: int) -> int:
    """Return a replacement for a sample whose image cannot be used: any of 0 .. samples - 1.

    It depends only on the arguments, so that processes that make the two views of a pair choose the same one.
    """
    return int(hashed(seed, SUBSTITUTE, epoch, sample, attempt)[0] % np.uint64(samples))


@dataclass(frozen=True)
class StepOrder:
    """The samples of every step of a run; an epoch's incomplete last batch is dropped, a different one each epoch."""

    seed: int
    samples: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete batches in the split."""
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
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
