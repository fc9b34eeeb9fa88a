"""Batches of uint8 or uint16 views of a split, made in data workers and normalised on the training device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medmoco.config import DataSettings, RunSettings
from medmoco.data.augment import views as view_maker
from medmoco.data.augment import volume_views
from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.image_io.fingerprints import canvas_digest
from medmoco.data.image_io.images import Canvas, read_canvas
from medmoco.data.image_io.intensity import relevant_notices
from medmoco.data.loading.emptiness import Emptiness
from medmoco.data.loading.pairs import Partners, Plan, plan_of
from medmoco.data.loading.quarantine import Found, Replacement, read_replacing, where
from medmoco.data.loading.sampler import WHOLE, BatchKey, Share, StepOrder, key_order
from medmoco.data.loading.workers import AHEAD, items_of, share, start_worker
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import Split
from medmoco.data.pack.pack import PackedRows, open_pack, packed_rows, usable_rows
from medmoco.data.pack.pack_cache import local_folder
from medmoco.data.pack.pack_volumes import PackedVolumes
from medmoco.data.volume_io.canvases import read_volume_canvas
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import DataError, ImageError, MedmocoError, SettingsError

Samples = NDArray[np.int64]  # (B,) positions in a split
Canvases = list[Canvas] | list[VolumeCanvas]
CanvasReader = Callable[[Samples], tuple[Any, tuple[str, ...]]]  # samples -> Canvases, notices
# B canvases and their samples -> (B, V, S, S), or several such arrays
ViewMaker = Callable[[Any, Samples], view_maker.Pixels | list[view_maker.Pixels]]
EpochViewMaker = Callable[[Any, Samples, int], view_maker.Pixels]  # the same, with the epoch


@dataclass
class Batch:
    """Views of B samples."""

    # V tensors (B, C, S, S) or (B, C, S, S, S), uint8 or uint16: the views of the plan in training, one in evaluation.
    # Evaluating windows of a volume: (W, C, S, S, S), and the whole volume
    views: list[Tensor]
    samples: Tensor  # (B,) int64, positions in the split; in pretraining those of the queries
    step: int = -1  # training step; -1 in evaluation
    epoch: int = -1  # training epoch; -1 in evaluation
    notices: tuple[str, ...] = ()  # notices of the reader, each with its row
    replaced: tuple[Replacement, ...] = ()  # replacements of images that cannot be used
    digests: tuple[bytes, ...] = ()  # in evaluation, B digests, see `fingerprints.canvas_digest`
    # Pixel weights of the queries' views in the decoder's loss, if some pixels are empty: for each direction of the
    # loss (B, 1, S, S) uint8, 255 where pixels count
    weights: tuple[Tensor, ...] = ()
    unread: tuple[tuple[int, str], ...] = ()  # samples that cannot be read, with the reason; their canvases are blank

    def __len__(self) -> int:
        return len(self.samples)

    def pin_memory(self) -> Batch:
        """Page-lock the views, so that copying to a GPU overlaps with computation; called by DataLoader."""
        self.views = [view.pin_memory() for view in self.views]
        self.weights = tuple(weights.pin_memory() for weights in self.weights)
        return self


Batches = Generator[Batch, None, None]


class ViewDataset(Dataset[Batch | MedmocoError]):
    """Maps a BatchKey to this process's share of the views in a plan.

    If the plan has one view, `make` can replace the augmentation.

    Errors are returned, not raised: DataLoader would add a traceback, which contains file paths.

    Attributes:
        remedy: What to do about an unusable image; ends the error message.
    """

    remedy = (
        "Leave the row out ('medmoco check' finds all such rows), or set data.bad_images=quarantine;"
        " then continue with --resume."
    )

    def __init__(
        self,
        split: Split,
        settings: RunSettings,
        share: Share = WHOLE,
        plan: Plan | None = None,
        make: EpochViewMaker | None = None,
    ) -> None:
        self.read = canvas_reader(split, settings.data)
        self.split = split
        self.settings = settings
        self.share = share
        self.plan = plan or plan_of(settings.method, settings.decoder)
        self.make = make
        weighs = plan is None and settings.decoder.empty != "none"
        self.emptiness = Emptiness(split, settings.data, settings.decoder) if weighs else None
        patient = settings.positives.image == "patient" and any(wanted.view == 1 for wanted in self.plan.views)
        self.partners = Partners(split, settings.positives, settings.seed) if patient else None

    def __getitem__(self, key: BatchKey) -> Batch | MedmocoError:
        part = self.share.of(len(key.samples))
        shuffled = key_order(self.settings.seed, key.step, len(key.samples))
        pairs = [key.samples[shuffled][part] if wanted.shuffled else key.samples[part] for wanted in self.plan.views]
        images = [
            self.partners.of(samples, key.epoch) if self.partners and view == 1 else samples
            for samples, (view, _) in zip(pairs, self.plan.views, strict=True)
        ]
        # An image in several views is read once. To replace a pair, the process with the partner must read its query.
        also = pairs if self.partners and self.settings.data.bad_images == "quarantine" else []
        needed = np.unique(np.concatenate([*images, *also]))
        try:
            found = self._read(needed, key.epoch)
            shown = [found.shown(own, other) for own, other in zip(pairs, images, strict=True)]
            places = [np.searchsorted(needed, samples) for samples in shown]
            weights = self._weigh(found, places, key.epoch)
        except MedmocoError as error:
            return error
        samples = found.used[places[0]]
        if self.make:
            made = [self.make([found.canvases[i] for i in places[0]], samples, key.epoch)]
        else:
            made = self._make_views(found.canvases, places, found.used, key.epoch)
        return Batch(
            [torch.from_numpy(view) for view in made], torch.from_numpy(samples), key.step, key.epoch,
            found.notices, found.replacements(pairs, images), weights=weights,
        )  # fmt: skip

    def _make_views(
        self, canvases: list[Canvas], places: list[Samples], used: Samples, epoch: int
    ) -> list[view_maker.Pixels]:
        """Return the views of the plan; a view that is both query and key is made once."""
        of_view: dict[int, list[int]] = {}
        for number, (view, _) in enumerate(self.plan.views):
            of_view.setdefault(view, []).append(number)
        sets: list[Samples] = []
        takes: dict[int, Samples] = {}
        for numbers in of_view.values():
            distinct = places[numbers[0]]
            if len(numbers) > 1:
                distinct, back = np.unique(np.concatenate([places[number] for number in numbers]), return_inverse=True)
                takes |= dict(zip(numbers, np.split(back, len(numbers)), strict=True))
            sets.append(distinct)
        params = [self._draw(canvases, chosen, used, epoch, view) for chosen, view in zip(sets, of_view, strict=True)]
        made = dict(
            zip(of_view, maker_of(self.settings.data).render(self.settings.views, canvases, params, sets), strict=True)
        )
        return [
            made[view][takes[number]] if number in takes else made[view]
            for number, (view, _) in enumerate(self.plan.views)
        ]

    def _draw(self, canvases: list[Canvas], places: Samples, used: Samples, epoch: int, view: int) -> ViewParameters:
        return maker_of(self.settings.data).draw(  # type: ignore[no-any-return]
            self.settings.views, [canvases[i] for i in places],
            seed=self.settings.seed, epoch=epoch, samples=used[places], view=view,
        )  # fmt: skip

    def _weigh(self, found: Found, places: list[Samples], epoch: int) -> tuple[Tensor, ...]:
        """Return the pixel weights of the queries' views for each direction of the loss; empty if all pixels count."""
        if self.emptiness is None:
            return ()
        made = []
        for number in self.plan.queries:
            of_view, view = places[number], self.plan.views[number].view
            params = self._draw(found.canvases, of_view, found.used, epoch, view)
            canvases = [found.canvases[i] for i in of_view]
            made.append(self.emptiness.weights(canvases, found.used[of_view], params, self.settings.views.size))
        return tuple(torch.from_numpy(weights) for weights in made)

    def _read(self, samples: Samples, epoch: int) -> Found:
        if self.settings.data.bad_images == "quarantine":
            return read_replacing(self.read, self.split, samples, seed=self.settings.seed, epoch=epoch)
        try:
            canvases, notices = self.read(samples)
            return Found(samples, samples, canvases, notices)
        except ImageError as error:
            raise ImageError(f"{error}\n{self.remedy}") from None


def maker_of(data: DataSettings) -> Any:
    """Return the module that draws and renders views of these images or volumes."""
    return volume_views if data.dimensions == 3 else view_maker


def whole_views(canvases: list[Canvas], samples: Samples, *, size: int) -> view_maker.Pixels:
    """Return whole-image views, (B, C, size, size)."""
    return view_maker.channels_first([view_maker.whole_view(canvas, size) for canvas in canvases])


class WholeDataset(Dataset[Batch | MedmocoError]):
    """Maps positions in a split to whole-image views, or to what `make` returns for each image."""

    def __init__(self, read: CanvasReader, make: ViewMaker) -> None:
        self.read = read
        self.make = make

    def __getitem__(self, samples: NDArray[np.int64]) -> Batch | MedmocoError:
        try:
            canvases, notices = self.read(samples)
        except MedmocoError as error:
            return error
        # Read once what is needed several times: in windows that overlap, as a whole, and for the digest.
        canvases = [canvas.in_memory() if isinstance(canvas, VolumeCanvas) else canvas for canvas in canvases]
        made = self.make(canvases, samples)
        views = [torch.from_numpy(each) for each in (made if isinstance(made, list) else [made])]
        digests = tuple(canvas_digest(canvas) for canvas in canvases)
        return Batch(views, torch.from_numpy(samples), notices=notices, digests=digests)


def check_images(split: Split, data: DataSettings) -> Split:
    """Check that every row has an image: a file, or a canvas in the pack.

    Returns:
        The split, without the rows that could not be packed if data.pack_failures is leave_out; a notice counts them.

    Raises:
        ManifestError: files do not exist.
        SettingsError: the pack does not exist or was made with other settings.
        DataError: the pack lacks rows, or is damaged.
    """
    if not data.pack:
        check_files(split, data)
        return split
    usable = usable_rows(open_pack(local_folder(data), data), split, data)
    if usable.all():
        return split
    left_out = (
        f"{split.name}: {(~usable).sum()} of {len(split)} rows are left out because their images could not be packed"
    )
    kept = split.select(usable)
    digest = hashlib.sha256(f"{split.sha256} {kept.rows.tolist()}".encode()).hexdigest()
    return replace(kept, sha256=digest, notices=(*split.notices, left_out))


def trained_rows(split: Split, data: DataSettings) -> Split:
    """Return the training rows that a run with these settings uses; all rows if its pack no longer exists."""
    if not data.pack:
        return split
    try:
        return check_images(split, data)
    except (DataError, SettingsError):
        return split


def canvas_reader(split: Split, data: DataSettings) -> CanvasReader:
    """Return a function from samples, (B,) positions in the split, to their canvases and the reader's notices.

    Raises:
        SettingsError, DataError: the pack cannot be used. The function raises ImageError or DataError with the row.
    """
    if not data.pack:
        return partial(_read_volumes if data.dimensions == 3 else _read_files, split, data)
    return partial(_read_packed, split, packed_rows(open_pack(local_folder(data), data), split, data))


def read_canvases(split: Split, samples: Samples, settings: RunSettings) -> tuple[list[Canvas], tuple[str, ...]]:
    """Read a few samples; see `canvas_reader`."""
    return canvas_reader(split, settings.data)(samples)


def _read_files(split: Split, data: DataSettings, samples: Samples) -> tuple[list[Canvas], tuple[str, ...]]:
    canvases, notices = [], []
    for sample in samples:
        try:
            canvas, remarks = read_canvas(split.files[sample], int(split.frames[sample]), data)
        except ImageError as error:
            raise ImageError(f"{where(split, sample)}: {error}") from None
        canvases.append(canvas)
        relevant = relevant_notices(remarks, frames_are_named=split.names_frames)
        notices += [f"{where(split, sample)}: {notice}" for notice in relevant]
    return canvases, tuple(notices)


def _read_volumes(split: Split, data: DataSettings, samples: Samples) -> tuple[list[VolumeCanvas], tuple[str, ...]]:
    canvases, notices, series = [], [], split.series
    for sample in samples.tolist():
        try:
            canvas, remarks = read_volume_canvas(split.files[sample], series[sample], data)
        except ImageError as error:
            raise ImageError(f"{where(split, sample)}: {error}") from None
        canvases.append(canvas)
        notices += [f"{where(split, sample)}: {notice}" for notice in remarks]
    return canvases, tuple(notices)


def _read_packed(split: Split, rows: PackedRows | PackedVolumes, samples: Samples) -> tuple[list[Any], tuple[str, ...]]:
    canvases: list[Any] = []
    for sample in samples:
        try:
            canvases.append(rows.read(sample))
        except DataError as error:
            raise DataError(f"{where(split, sample)}: {error}") from None
    return canvases, ()


def training_batches(
    split: Split,
    settings: RunSettings,
    order: StepOrder,
    start_step: int,
    share: Share = WHOLE,
    plan: Plan | None = None,
    make: EpochViewMaker | None = None,
) -> Batches:
    """Yield this process's share of the batches of steps start_step, start_step + 1, ... to the end of the run.

    Without a plan, these are the pairs of views that the method compares.

    One loader serves all epochs, so that workers are never idle at the end of an epoch. Close the generator if the run
    may end early: at exit, a process waits for its workers, and they for their loader, which an exception may keep
    alive.

    Raises:
        DataError: an image cannot be used; a data worker was killed or hangs.
    """
    dataset = ViewDataset(split, settings, share, plan, make)
    return batches_of(dataset, order.from_step(start_step), settings)


def evaluation_batches(split: Split, settings: RunSettings, size: int, make: ViewMaker | None = None) -> Batches:
    """Yield a split in row order as whole-image views of `size` pixels, or as the results of `make`.

    Raises:
        DataError: an image cannot be used.
    """
    make = make or whole_maker(settings.data.dimensions, size, settings.evaluate.volumes)
    return whole_batches(WholeDataset(canvas_reader(split, settings.data), make), len(split), settings)


def whole_maker(dimensions: int, size: int, volumes: str) -> ViewMaker:
    """Return what makes the network's input for evaluation, in which images and volumes are shown as a whole."""
    return (
        partial(volume_views.whole_volumes, size=size, way=volumes)
        if dimensions == 3
        else partial(whole_views, size=size)
    )


def whole_batches(dataset: WholeDataset, count: int, settings: RunSettings) -> Batches:
    """Yield the `count` samples of a dataset in order, `evaluate.batch_size` at a time; see `evaluation_batches`.

    Volumes that are shown as windows come one at a time: their number of windows depends on their size.
    """
    sliding = settings.data.dimensions == 3 and settings.evaluate.volumes == "sliding"
    step = 1 if sliding else settings.evaluate.batch_size
    chunks = np.split(np.arange(count), range(step, count, step))
    return batches_of(dataset, chunks, settings)


def batches_of(dataset: Dataset[Any], keys: Iterable[Any], settings: RunSettings) -> Batches:
    """Yield the batches of a dataset, made in data workers, in the order of the keys.

    Raises:
        MedmocoError: one that the dataset returns instead of a batch; see also `items_of`.
    """
    workers = settings.data.workers
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # a key already identifies a whole batch
        sampler=keys,
        num_workers=workers,
        collate_fn=hand_over,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available() and settings.train.device != "cpu",
        prefetch_factor=AHEAD if workers else None,
    )
    return _raising(items_of(loader, settings))


def hand_over(item: Any) -> Any:
    """Move a worker's batch or tuple of tensors to shared memory here: without room, DataLoader would lose it."""
    try:
        if isinstance(item, Batch):
            share([*item.views, item.samples, *item.weights])
        elif isinstance(item, tuple):
            share(item)
    except DataError as error:
        return error
    return item


def _raising(items: Generator[Batch | MedmocoError, None, None]) -> Batches:
    with closing(items):
        for item in items:
            if isinstance(item, MedmocoError):
                raise item
            yield item
