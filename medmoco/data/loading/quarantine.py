"""Images that turn out to be unusable while training: another takes their place, openly; their rows are listed.

A batch keeps its size, which batch norm's groups and the gathers between processes rest on. What takes the place is a
pure function of the sample (`order.substitute`), so that both views of a pair are of one image even when two processes
make them, and resuming gives the same. The views are drawn as those of the image that is there. Where a key is of a
partner, another image of the patient, and either of the two cannot be used, both views are of one image.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.pairs import Plan
from medmoco.data.loading.sampler import substitute
from medmoco.data.manifest.manifest import Split
from medmoco.errors import DataError, ImageError
from medmoco.utils.files import replacing

QUARANTINE = "quarantine.csv"
_ATTEMPTS = 8  # where one image in ten is unusable, all of them fail once in a hundred million

Bad = tuple[int, str]  # row in the manifest, and why its image cannot be used, without path or id


@dataclass(frozen=True)
class Replacement:
    """A place in one view of a batch where another image stands in.

    Attributes:
        view: Place in the plan.
        pair: Whose query's pair it is, as a position in the split.
        sample: Whose image cannot be used: the pair's own, or its partner's.
        bad: Of that image, and of those that were tried in its place and cannot be used either.
    """

    view: int
    pair: int
    sample: int
    bad: tuple[Bad, ...]


@dataclass(frozen=True)
class Found:
    """What was read for N samples.

    Attributes:
        wanted: (N,) the samples, in rising order.
        used: (N,) the samples that were read: those wanted, or what takes their place.
        canvases: N of them.
        notices: What the reader remarked on.
        bad: Of the wanted samples that another stands in for.
    """

    wanted: NDArray[np.int64]
    used: NDArray[np.int64]
    canvases: list[Canvas]
    notices: tuple[str, ...]
    bad: dict[int, tuple[Bad, ...]] = field(default_factory=dict)

    def shown(self, pairs: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of the wanted samples stand in a view, (B,): a pair's own where a partner cannot be used.

        Args:
            pairs: (B,) the queries.
            images: (B,) what the view is of: their own images, or their partners'.
        """
        if not self.bad:
            return images
        either = np.isin(pairs, list(self.bad)) | np.isin(images, list(self.bad))
        return np.where(either, pairs, images)

    def replacements(
        self, pairs: Iterable[NDArray[np.int64]], images: Iterable[NDArray[np.int64]]
    ) -> tuple[Replacement, ...]:
        """Return the places in each view where another image stands in; arguments as of `shown`, for each view."""
        met = []
        for view, (own, other) in enumerate(zip(pairs, images, strict=True)):
            for pair, image in zip(own.tolist(), other.tolist(), strict=True):
                met += [Replacement(view, pair, bad, self.bad[bad]) for bad in {pair, image} & self.bad.keys()]
        return tuple(met)


def where(split: Split, sample: int) -> str:
    """Name a row."""
    return f"{split.csv.name} row {split.rows[sample]}"


def read_replacing(
    read: Callable[[NDArray[np.int64]], tuple[list[Canvas], tuple[str, ...]]],
    split: Split,
    wanted: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> Found:
    """Read samples, and others in place of those whose image cannot be used.

    Args:
        read: See `loading.canvas_reader`.
        split: Of the samples.
        wanted: (N,) positions in it, in rising order.
        seed: Of the run.
        epoch: Of the batch.

    Raises:
        DataError: none of a number of others can be used either; or something else than an image is wrong.
    """
    used, bad = wanted.copy(), {}
    canvases: list[Canvas] = []
    notices: list[str] = []
    for place, sample in enumerate(wanted.tolist()):
        met: list[Bad] = []
        for attempt in range(_ATTEMPTS + 1):
            used[place] = substitute(seed, epoch, sample, attempt, len(split)) if attempt else sample
            try:
                made, remarks = read(used[place : place + 1])
            except ImageError as error:
                reason = " ".join(str(error).removeprefix(f"{where(split, used[place])}: ").split())
                met.append((int(split.rows[used[place]]), reason))
                continue
            canvases += made
            notices += remarks
            break
        else:
            raise DataError(
                f"{where(split, sample)}: its image cannot be used, nor can {_ATTEMPTS} others that were to take its"
                f" place.\nThe first of them: {met[0][1]}\n'medmoco check' finds all of them; mend the files, or the"
                " disk."
            )
        if met:
            bad[sample] = tuple(met)
    return Found(wanted, used, canvases, tuple(notices), bad)


def check_pairs(found: Iterable[Replacement], split: Split, plan: Plan) -> None:
    """Make sure that whoever made one view of a pair replaced it as who made the others did.

    Args:
        found: In a whole batch, by all processes.
        split: Of the samples.
        plan: Of the views.

    Raises:
        DataError: a file could be read here and not there.
    """
    met: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for replacement in found:
        met[replacement.pair, replacement.sample].append([row for row, _ in replacement.bad])
    for (pair, sample), rows in met.items():
        makers = [wanted for wanted in plan.wanted if pair == sample or wanted.view == 1]
        if len(rows) != len(makers) or any(each != rows[0] for each in rows):
            raise DataError(
                f"{where(split, sample)}: an image could be read by one process and not by another, so that the\n"
                "storage fails now and then rather than the file. Look at it (dmesg, the file server's log), then go\n"
                "on with --resume."
            )


class Quarantine:
    """The rows whose images a run has left out, in a file of its folder: no path, no id."""

    def __init__(self, folder: Path, budget: int) -> None:
        """Read what the run has listed before."""
        self._file, self._budget = folder / QUARANTINE, budget
        self._reasons: dict[int, str] = {}
        if self._file.is_file():
            with self._file.open(encoding="utf-8", newline="") as file:
                self._reasons = {int(row): reason for row, reason in list(csv.reader(file))[1:]}

    def __len__(self) -> int:
        return len(self._reasons)

    def rows(self) -> list[int]:
        """Return the rows."""
        return list(self._reasons)

    def add(self, found: Iterable[Replacement]) -> list[Bad]:
        """Take in what a batch has met and return what is new, in the order of rows."""
        new = {row: reason for replacement in found for row, reason in replacement.bad if row not in self._reasons}
        self._reasons |= new
        return sorted(new.items())

    def write(self) -> None:
        """Write the list."""
        with replacing(self._file) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("row", "reason"), *sorted(self._reasons.items())])

    def check_budget(self, csv_name: str) -> None:
        """Raise DataError if more rows are listed than `data.bad_images_budget` allows."""
        if len(self) > self._budget:
            raise DataError(
                f"{len(self)} images of {csv_name} cannot be used, more than data.bad_images_budget {self._budget};\n"
                f"{QUARANTINE} in the run folder lists their rows. Look for what they have in common (disk, download,\n"
                "decoder); 'medmoco check' finds all such files. Mend them and delete the list, or raise the budget;\n"
                "then go on with --resume."
            )
