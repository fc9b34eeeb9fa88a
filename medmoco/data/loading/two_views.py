"""Two views of every image as a PyTorch data set, for training loops other than medmoco's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from medmoco.config import ConfigSource, RunSettings, Tree, load
from medmoco.config.reading import merge
from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import ViewDataset, check_images, hand_over
from medmoco.data.loading.pairs import TWO_VIEWS
from medmoco.data.loading.sampler import BatchKey
from medmoco.data.manifest.manifest import SPLITS, Split, load_manifest
from medmoco.data.pack.pack import open_pack, read_info
from medmoco.data.pack.pack_cache import local_folder
from medmoco.errors import MedmocoError, SettingsError
from medmoco.utils.rng import ORDER, permutation

Pair = tuple[Tensor, Tensor]  # the query's view and the key's


class TwoViews(Dataset[Pair]):
    """Two random views of each image of a split: a query and its key.

    The views are the ones that `medmoco pretrain` makes with the same settings, to the bit. They depend on the seed,
    the epoch and the sample alone, whatever the number of workers or processes. `loader` moves from epoch to epoch by
    itself; with another `DataLoader`, call `set_epoch` before each pass. On several processes, give such a loader a
    `torch.utils.data.DistributedSampler`.

    Examples:
        >>> import medmoco
        >>> views = medmoco.TwoViews("phantoms", root="phantoms/{split}", size=48, data={"canvas_size": 64})
        >>> query, key = views[0]
        >>> query.shape, query.dtype
        (torch.Size([1, 48, 48]), torch.float32)
        >>> for queries, keys in views.loader(batch_size=4, workers=1):
        ...     pass  # the training step
        >>> queries.shape
        torch.Size([4, 1, 48, 48])
        >>> views.set_epoch(0)  # begin again
        >>> integers, _ = next(iter(views.loader(batch_size=4, workers=0, normalise=False)))
        >>> integers.dtype, views.to_float(integers).dtype
        (torch.uint8, torch.float32)

    Attributes:
        settings: All settings, defaults included.
        rows: (N,) int64, the row of each sample in the CSV, as a spreadsheet counts them.
    """

    def __init__(
        self,
        source: ConfigSource,
        *,
        split: str = "train",
        root: str | Path | None = None,
        pack: str | Path | None = None,
        recipe: str | None = None,
        size: int | None = None,
        **settings: Any,
    ) -> None:
        """Read the manifest and look for the images.

        Args:
            source: A manifest (a folder of CSV files, or one CSV file with a Split column), a settings file (.yaml), a
                mapping of settings, or loaded settings, which then take no other argument than `split`.
            split: train, val or test.
            root: Folder that the Path column is relative to; {split} in it becomes the split. Not needed with a pack.
            pack: Made by `medmoco pack`; its canvas size, bit depth, window and channels are used.
            recipe: Preset of augmentations; "xray" if not given.
            size: Side S of a view in pixels; 224 if not given.
            **settings: Other settings by group, such as `seed=1, views={"flip_probability": 0}, data={"workers": 8}`.

        Raises:
            SettingsError: an argument or the pack cannot be used.
            DataError: the manifest, the images or the pack cannot be used.
        """
        if split not in SPLITS:
            raise SettingsError(f"split={split!r}: choose from {', '.join(SPLITS)}")
        given = merge(_given(data={"root": root, "pack": pack}, views={"recipe": recipe, "size": size}), settings)
        chosen = _settings(source, given)
        matters = chosen.positives.image == "patient"  # otherwise no patient is needed
        found = load_manifest(chosen.data, (split,), patients_matter=matters)[split]
        if chosen.data.root == _UNKNOWN:
            chosen = _with_root_of_pack(chosen, found)
        used = check_images(found, chosen.data)
        for notice in used.notices[len(found.notices) :]:
            warnings.warn(notice, stacklevel=2)
        self.settings, self.rows = chosen, used.rows
        self._batches = ViewDataset(used, chosen, plan=TWO_VIEWS)
        self._batches.remedy = _REMEDY
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._epoch_is_used = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        """Return the views of one sample, each (C, S, S) float32, normalised.

        Raises:
            DataError: the image cannot be used; names the row of the manifest.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Return the views of several samples; a `DataLoader` calls this for each batch."""
        samples = np.array([range(len(self))[index] for index in indices])  # refuses what lies beyond the end
        queries, keys = (self.to_float(views) for views in self.make(samples, self.epoch))
        return list(zip(queries, keys, strict=True))

    def __setstate__(self, state: Tree) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose views are made, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change to the views of another epoch, also in the running workers of a `DataLoader`.

        Call it between two passes over a loader; the next one then has the views of this epoch.
        """
        self._epoch.fill_(epoch)
        self._epoch_is_used = False

    def next_epoch(self) -> int:
        """Return the epoch of a new pass: the one that was set, or the one after the last pass."""
        if self._epoch_is_used:
            self._epoch += 1
        self._epoch_is_used = True
        return self.epoch

    def loader(
        self,
        batch_size: int,
        *,
        workers: int | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        normalise: bool = True,
    ) -> DataLoader[Pair]:
        """Return a loader of batches, two tensors (B, C, S, S) each; every pass over it is another epoch.

        The batches are those of `medmoco pretrain` with the same settings and batch size. To resume at epoch e, call
        `set_epoch(e)` first.

        Args:
            batch_size: B.
            workers: Processes that make views; `data.workers` if not given, 0 makes them in this process.
            shuffle: Another order each epoch; without it, that of the manifest.
            drop_last: Leave out an incomplete last batch; another one each epoch where the order changes.
            normalise: Without it, batches are uint8 (or uint16), a quarter of the memory to move; call `to_float` on
                the training device.

        Raises:
            SettingsError: the batch exceeds the split.
        """
        workers = self.settings.data.workers if workers is None else workers
        return _Loader(
            _Batches(self, normalise),
            batch_size=None,  # the sampler already names whole batches
            sampler=_Order(self, batch_size, shuffle=shuffle, drop_last=drop_last),
            num_workers=workers,
            collate_fn=hand_over,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def to_float(self, views: Tensor) -> Tensor:
        """Return integer views as float32 on the same device, normalised by `views.mean` and `views.std`."""
        return to_float(views, self.settings.views, views.device, channels_last=False)

    def make(self, samples: NDArray[np.int64], epoch: int) -> list[Tensor]:
        """Return queries and keys of samples in an epoch, (B, C, S, S) uint8 or uint16 each.

        Raises:
            DataError: an image cannot be used; names the row of the manifest.
        """
        if get_worker_info():
            cv2.setNumThreads(1)  # there is a process per core, and OpenCV's threads do not survive a fork
        batch = self._batches[BatchKey(0, epoch, samples)]
        if isinstance(batch, MedmocoError):
            raise batch
        for row, reason in {bad for replacement in batch.replaced for bad in replacement.bad}:
            warnings.warn(f"row {row}: {reason}; another image takes its place", stacklevel=2)
        return batch.views


_REMEDY = (
    "Leave the row out ('medmoco check' finds all such rows), or have another image take its place:\n"
    "data.bad_images=quarantine."
)
_UNKNOWN = "."  # root if only a pack is given


# Settings


def _given(**groups: Tree) -> Tree:
    """Return the settings without values of None."""
    return {group: {key: value for key, value in keys.items() if value is not None} for group, keys in groups.items()}


def _settings(source: ConfigSource, given: Tree) -> RunSettings:
    """Return the settings that the arguments of `TwoViews` mean."""
    if isinstance(source, RunSettings):
        if any(given.values()):
            raise SettingsError("TwoViews: settings take no other argument than split; change the settings instead")
        return source
    if isinstance(source, Mapping) or Path(source).suffix.lower() in (".yaml", ".yml"):
        return load(source, changes=given)
    user = merge({"out": ".", "data": {"manifest": source}}, given)
    data = user["data"]
    if isinstance(data, dict) and data.get("pack"):
        user["data"] = {**_recipe_of_pack(data), "root": _UNKNOWN, **data}
    return load(user)


def _recipe_of_pack(data: Tree) -> Tree:
    """Return the settings of canvases with which a pack was made."""
    place: Tree = {"root": _UNKNOWN, **{key: data[key] for key in ("manifest", "pack", "pack_cache") if key in data}}
    recipe: Tree = read_info(local_folder(load({"out": ".", "data": place}).data))["recipe"]
    return recipe


def _with_root_of_pack(settings: RunSettings, split: Split) -> RunSettings:
    """Return the settings with the root for which the pack contains the rows: with or without {split}."""
    data = settings.data
    if not data.pack or (open_pack(local_folder(data), data).find(split, data) >= 0).any():
        return settings
    return settings.model_copy(update={"data": data.model_copy(update={"root": "{split}"})})


# The loader


class _Order(Sampler[BatchKey]):
    """The batches of one epoch after another."""

    def __init__(self, views: TwoViews, batch_size: int, *, shuffle: bool, drop_last: bool) -> None:
        self._views, self._batch_size, self._shuffle = views, batch_size, shuffle
        whole, rest = divmod(len(views), batch_size)
        self._batches = whole + (rest > 0 and not drop_last)
        if not self._batches:
            raise SettingsError(
                f"batch_size {batch_size} exceeds the {len(views)} images; lower it, or set drop_last=False"
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[BatchKey]:
        # A generator, since DataLoader creates an extra iterator, which must not count as a pass.
        epoch, size = self._views.next_epoch(), self._batch_size
        samples = np.arange(len(self._views))
        if self._shuffle:
            samples = permutation(self._views.settings.seed, ORDER, epoch, length=len(samples))
        for batch in range(len(self)):
            yield BatchKey(batch, epoch, samples[batch * size : (batch + 1) * size])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; trainers such as Lightning call it."""
        self._views.set_epoch(epoch)


class _Batches(Dataset[Pair | MedmocoError]):
    """Makes whole batches; the key of each contains the epoch, so that none uses an outdated one."""

    def __init__(self, views: TwoViews, normalise: bool) -> None:
        self._views, self._normalise = views, normalise

    def __getitem__(self, key: BatchKey) -> Pair | MedmocoError:
        try:
            queries, keys = self._views.make(key.samples, key.epoch)
        except MedmocoError as error:
            return error  # if it were raised, DataLoader would add the worker's traceback
        return (self._views.to_float(queries), self._views.to_float(keys)) if self._normalise else (queries, keys)


class _Loader(DataLoader[Any]):
    """Raises the errors of its workers in the process that trains."""

    def __iter__(self) -> Any:
        for item in super().__iter__():
            if isinstance(item, MedmocoError):
                raise item
            yield item
