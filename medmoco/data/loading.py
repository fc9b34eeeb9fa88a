"""Split -> batches of uint8 or uint16 views, made in data workers; normalised on the training device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medmoco.config import RunSettings, ViewSettings
from medmoco.data import views as view_maker
from medmoco.data.guarded import settle_worker
from medmoco.data.images import Canvas, read_canvas
from medmoco.data.manifest import Split
from medmoco.data.order import BatchKey, StepOrder
from medmoco.errors import ImageError, MedmocoError


@dataclass
class Batch:
    """Views of B samples.

    Attributes:
        views: V tensors (B, 1, S, S), uint8 or uint16: query then key in pretraining, one in evaluation.
        samples: (B,) int64, positions in the split.
        step: Of training; -1 in evaluation.
        epoch: Of training; -1 in evaluation.
        notices: What the reader remarked on, each with its row.
    """

    views: list[Tensor]
    samples: Tensor
    step: int = -1
    epoch: int = -1
    notices: tuple[str, ...] = ()

    def pin_memory(self) -> Batch:
        """Page-lock the views, so that the copy to a GPU overlaps with its work; called by DataLoader."""
        self.views = [view.pin_memory() for view in self.views]
        return self


class ViewDataset(Dataset[Batch | MedmocoError]):
    """Maps a BatchKey to its batch of two views.

    Errors are returned, not raised: DataLoader would wrap a traceback, and with it file paths, around them.
    """

    def __init__(self, split: Split, settings: RunSettings) -> None:
        self.split = split
        self.settings = settings

    def __getitem__(self, key: BatchKey) -> Batch | MedmocoError:
        settings = self.settings
        try:
            canvases, notices = read_canvases(self.split, key.samples, settings)
        except MedmocoError as error:
            return error
        drawn = [
            view_maker.draw(
                settings.views, canvases, seed=settings.seed, epoch=key.epoch, samples=key.samples, view=view
            )
            for view in range(2)
        ]
        made = view_maker.render(settings.views, canvases, drawn)
        return Batch(
            [torch.from_numpy(view) for view in made], torch.from_numpy(key.samples), key.step, key.epoch, notices
        )


class WholeDataset(Dataset[Batch | MedmocoError]):
    """Maps positions in a split to whole-image views."""

    def __init__(self, split: Split, settings: RunSettings, size: int) -> None:
        self.split = split
        self.settings = settings
        self.size = size

    def __getitem__(self, samples: NDArray[np.int64]) -> Batch | MedmocoError:
        try:
            canvases, notices = read_canvases(self.split, samples, self.settings)
        except MedmocoError as error:
            return error
        views = np.stack([view_maker.whole(canvas, self.size) for canvas in canvases])[:, None]
        return Batch([torch.from_numpy(views)], torch.from_numpy(samples), notices=notices)


def read_canvases(
    split: Split, samples: NDArray[np.int64], settings: RunSettings
) -> tuple[list[Canvas], tuple[str, ...]]:
    """Decode samples to canvases.

    Returns:
        The canvases, and the reader's notices with their rows.

    Raises:
        ImageError: a file cannot be used; names the manifest and the row, not the file.
    """
    canvases, notices = [], []
    for sample in samples:
        where = f"{split.csv.name} row {split.rows[sample]}"
        try:
            canvas, remarks = read_canvas(split.files[sample], int(split.frames[sample]), settings.data)
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None
        canvases.append(canvas)
        notices += [f"{where}: {remark}" for remark in remarks]
    return canvases, tuple(notices)


def training_batches(split: Split, settings: RunSettings, order: StepOrder, start_step: int) -> Iterator[Batch]:
    """Yield the two-view batches of steps start_step, start_step + 1, ... to the end of the run.

    One loader serves all epochs, so that workers never idle at an epoch's end.

    Raises:
        DataError: an image cannot be used.
    """
    return _raising(_loader(ViewDataset(split, settings), order.from_step(start_step), settings))


def evaluation_batches(split: Split, settings: RunSettings, size: int) -> Iterator[Batch]:
    """Yield a split in row order as whole-image views of `size` pixels.

    Raises:
        DataError: an image cannot be used.
    """
    positions = np.arange(len(split))
    chunks = np.split(positions, range(settings.evaluate.batch_size, len(split), settings.evaluate.batch_size))
    return _raising(_loader(WholeDataset(split, settings, size), chunks, settings))


def _loader(dataset: Dataset[Any], keys: Iterable[Any], settings: RunSettings) -> DataLoader[Any]:
    workers = settings.data.workers
    return DataLoader(
        dataset,
        batch_size=None,  # a key already names a whole batch
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available() and settings.train.device != "cpu",
        prefetch_factor=4 if workers else None,
    )


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # The training process decides when to stop and still needs its workers until it has saved.
    settle_worker()


def _raising(items: Iterable[Batch | MedmocoError]) -> Iterator[Batch]:
    for item in items:
        if isinstance(item, MedmocoError):
            raise item
        yield item


def to_float(views: Tensor, settings: ViewSettings, device: torch.device, *, channels_last: bool) -> Tensor:
    """Move views to the device and normalise them there: (pixel / white - mean) / std.

    Args:
        views: (B, 1, S, S), uint8 or uint16.
        settings: Holds mean and std, as shares of white.
        device: Of the model.
        channels_last: Memory layout of the result.

    Returns:
        (B, 1, S, S) float32.
    """
    white = 255.0 if views.dtype == torch.uint8 else 65535.0
    layout = torch.channels_last if channels_last else torch.contiguous_format
    floats = views.to(device, non_blocking=True).to(torch.float32)
    return floats.mul_(1 / (white * settings.std)).sub_(settings.mean / settings.std).contiguous(memory_format=layout)
