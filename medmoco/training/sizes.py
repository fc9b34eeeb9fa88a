"""Whether the batch and the queue fit the training split and the processes, and settings that do.

Apart from the training task, because commands that only write settings need no torch.
"""

from __future__ import annotations

import math

from medmoco.config import RunSettings
from medmoco.errors import SettingsError
from medmoco.training.refusals import Refusals, setting_words


def check_sizes(images: int, settings: RunSettings, processes: int = 1) -> None:
    """Raise SettingsError if the batch or the queue does not fit the training split or the processes."""
    size_refusals(images, settings, processes).refuse()


def size_refusals(images: int, settings: RunSettings, processes: int = 1) -> Refusals:
    """Return why the batch or the queue does not fit the training split or the processes, with settings that would."""
    refusals = Refusals()
    queue, batch = settings.method.queue_size, settings.train.global_batch_size
    enough = images >= 2 * processes
    if not enough:
        refusals.add(_too_few_images(images, processes))
    long_queue, large_batch = queue > images and settings.method.negatives == "all", batch > images and enough
    fix = _fitting_batch(images, settings, processes) if large_batch else {}
    fix |= {"method.queue_size": power_of_two(images)} if long_queue else {}
    names = [f"train.global_batch_size {batch}"] * large_batch + [f"method.queue_size {queue}"] * long_queue
    if names:
        verb = "exceed" if len(names) > 1 else "exceeds"
        reason = (
            "A longer queue would hold keys of a query's own image as negatives;"
            " method.negatives=other_images excludes these.\n"
        )
        text = f"{' and '.join(names)} {verb} the {images} training images\n{reason * long_queue}{setting_words(fix)}"
        refusals.add(SettingsError(text, fix))
    if enough:
        with refusals.collecting():
            batch_norm_groups(settings, processes, images)
    return refusals


def batch_norm_groups(settings: RunSettings, processes: int, images: int | None = None) -> int:
    """Return the number of groups of the whole batch over which batch norm computes its statistics.

    It is `method.batch_norm_splits`, but at least one per forward pass: per part of the batch and, unless processes are
    joined, per process.

    Args:
        settings: Settings of the run.
        processes: Number of training processes.
        images: Number of images in the training split, which the batch that an error proposes does not exceed.

    Raises:
        SettingsError: the batch does not divide into these groups.
    """
    train, splits = settings.train, settings.method.batch_norm_splits
    pieces = math.lcm(splits, processes * train.accumulation_steps)
    if train.global_batch_size % pieces or train.global_batch_size // pieces < 2:
        fitting = max(2, round(train.global_batch_size / pieces)) * pieces
        fix, remedy = {"train.global_batch_size": fitting}, f"Set it to a multiple of {pieces}, such as {fitting}."
        if images is not None and fitting > images:
            fix = _fitting_batch(images, settings, processes)
            remedy = setting_words(fix)
        raise SettingsError(
            f"train.global_batch_size {train.global_batch_size} does not divide into {pieces} equal groups of 2 or"
            f" more:\n{processes} processes x train.accumulation_steps {train.accumulation_steps}, and"
            f" method.batch_norm_splits {splits}.\n{remedy}",
            fix=fix,
        )
    return train.accumulation_steps if settings.method.batch_norm == "joined" else pieces


def _too_few_images(images: int, processes: int) -> SettingsError:
    several = processes > 1
    return SettingsError(
        f"pretraining{f' with {processes} processes' * several} needs at least {2 * processes} training images; there"
        f" {'is' if images == 1 else 'are'} only {images}.\n"
        f"{'Start fewer processes, or add images' if several else 'Add images'}."
    )


def _fitting_batch(images: int, settings: RunSettings, processes: int) -> dict[str, int]:
    """Return settings that differ, with a batch of a quarter of the images or less, so that an epoch has a few steps.

    Args:
        images: Number of images in the training split, two or more for each process.
        settings: Settings of the run.
        processes: Number of training processes.
    """
    splits, parts = settings.method.batch_norm_splits, settings.train.accumulation_steps
    changed = {}
    if 2 * math.lcm(splits, processes * parts) > images and splits > 1:
        splits = changed["method.batch_norm_splits"] = 1
    if 2 * math.lcm(splits, processes * parts) > images:
        parts = changed["train.accumulation_steps"] = 1
    pieces = math.lcm(splits, processes * parts)
    return {"train.global_batch_size": max(2, power_of_two(images // 4) // pieces) * pieces, **changed}


def power_of_two(most: int) -> int:
    """Return the largest power of two up to a number, 1 at least."""
    return 1 << max(most, 1).bit_length() - 1
