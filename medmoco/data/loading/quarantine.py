"""Replace images that turn out to be unusable during training, and list their rows.

A batch keeps its size, on which batch norm's groups and the gathers between processes rely. The replacement is a pure
function of the sample (`sampler.substitute`), so that both views of a pair show one image even if two processes make
them, and resuming gives the same result. The views are drawn as for the replacement. If a key is of a partner, another
image of the patient, and either of the two cannot be used, both views show the query's image or its replacement.
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
_ATTEMPTS = 8  # if one image in ten is unusable, all attempts fail once in a hundred million times

Bad = tuple[int, str]  # row in the manifest, and why its image cannot be used, without path or id


@dataclass(frozen=True)
class Replacement:
    """The use of another image in one view of a batch."""

    view: int  # position of the view in the plan
    pair: int  # the query of the pair, as a position in the split
    sample: int  # the sample whose image cannot be used: the pair's own, or its partner
    bad: tuple[Bad, ...]  # row and reason of that image, and of replacements that cannot be used either


@dataclass(frozen=True)
class Found:
    """The images read for N samples."""

    wanted: NDArray[np.int64]  # (N,) the requested samples, in ascending order
    used: NDArray[np.int64]  # (N,) the samples that were read: the requested ones, or their replacements
    canvases: list[Canvas]
    notices: tuple[str, ...]  # notices of the reader
    bad: dict[int, tuple[Bad, ...]] = field(default_factory=dict)  # replaced sample -> rows and reasons

    def shown(self, pairs: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples that a view shows, (B,): the query's own if a partner cannot be used.

        `pairs` (B,) are the queries, `images` (B,) those of the view: the queries' own, or their partners'.
        """
        if not self.bad:
            return images
        either = np.isin(pairs, list(self.bad)) | np.isin(images, list(self.bad))
        return np.where(either, pairs, images)

    def replacements(
        self, pairs: Iterable[NDArray[np.int64]], images: Iterable[NDArray[np.int64]]
    ) -> tuple[Replacement, ...]:
        """Return the replacements in each view; the arguments are those of `shown`, for each view."""
        return tuple(
            Replacement(view, pair, bad, self.bad[bad])
            for view, (own, other) in enumerate(zip(pairs, images, strict=True))
            for pair, image in zip(own.tolist(), other.tolist(), strict=True)
            for bad in {pair, image} & self.bad.keys()
        )


def where(split: Split, sample: int) -> str:
    """Return the file and row of a sample, for messages."""
    return f"{split.csv.name} row {split.rows[sample]}"


def read_replacing(
    read: Callable[[NDArray[np.int64]], tuple[list[Canvas], tuple[str, ...]]],
    split: Split,
    wanted: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> Found:
    """Read samples, (N,) ascending positions in the split, and replace those whose image cannot be used.

    Raises:
        DataError: several replacements cannot be used either, or the error is not about an image.
    """
    used, bad = wanted.copy(), {}
    canvases: list[Canvas] = []
    notices: list[str] = []
    for position, sample in enumerate(wanted.tolist()):
        failed: list[Bad] = []
        for attempt in range(_ATTEMPTS + 1):
            used[position] = substitute(seed, epoch, sample, attempt, len(split)) if attempt else sample
            try:
                made, remarks = read(used[position : position + 1])
            except ImageError as error:
                reason = " ".join(str(error).removeprefix(f"{where(split, used[position])}: ").split())
                failed.append((int(split.rows[used[position]]), reason))
                continue
            canvases += made
            notices += remarks
            break
        else:
            raise DataError(
                f"{where(split, sample)}: its image cannot be used, and neither can {_ATTEMPTS} replacements.\n"
                f"The first reason: {failed[0][1]}\n'medmoco check' finds all such files; repair them, or the disk."
            )
        if failed:
            bad[sample] = tuple(failed)
    return Found(wanted, used, canvases, tuple(notices), bad)


def check_pairs(found: Iterable[Replacement], split: Split, plan: Plan) -> None:
    """Check that all views of a pair have the same replacements, whichever process made them.

    Raises:
        DataError: one process could read a file and another could not.
    """
    replaced: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for replacement in found:
        replaced[replacement.pair, replacement.sample].append([row for row, _ in replacement.bad])
    for (pair, sample), rows in replaced.items():
        makers = [wanted for wanted in plan.views if pair == sample or wanted.view == 1]
        if len(rows) != len(makers) or any(each != rows[0] for each in rows):
            raise DataError(
                f"{where(split, sample)}: one process could read an image and another could not, so the storage\n"
                "fails intermittently rather than the file. Check it (dmesg, log of the file server), then continue\n"
                "with --resume."
            )


class Quarantine:
    """The rows whose images a run has replaced, kept in its folder without paths or IDs."""

    def __init__(self, folder: Path, budget: int) -> None:
        """Read the rows that the run has listed before."""
        self._file, self._budget = folder / QUARANTINE, budget
        self._reasons: dict[int, str] = {}
        if self._file.is_file():
            with self._file.open(encoding="utf-8", newline="") as file:
                self._reasons = {int(row): reason for row, reason in list(csv.reader(file))[1:]}

    def __len__(self) -> int:
        return len(self._reasons)

    def rows(self) -> list[int]:
        """Return the listed rows."""
        return list(self._reasons)

    def add(self, found: Iterable[Replacement]) -> list[Bad]:
        """Add the replacements of a batch and return the new entries, ordered by row."""
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
                f"{QUARANTINE} in the run folder lists their rows. Look for a common cause (disk, download, decoder);\n"
                "'medmoco check' finds all such files. Repair them and delete the list, or raise the budget; then\n"
                "continue with --resume."
            )
