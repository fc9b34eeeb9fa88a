"""Synthetic images in a temporary folder, to measure a machine that has no data."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

from medmoco.config import RunSettings
from medmoco.datasets.phantoms.phantom import phantom

_PATIENTS, _SIDE = 12, 1024


@contextmanager
def on_phantoms(settings: RunSettings, log: Callable[[str], None], side: int = _SIDE) -> Iterator[RunSettings]:
    """Provide the settings with phantoms as their data, DICOM and PNG files that are read without a pack.

    Few are drawn, and each has several names, as many as a training split with this batch and queue needs.

    Args:
        settings: Settings to measure.
        log: Receives what takes a while.
        side: Side of the images in pixels.
    """
    settings.data.require_images("bench --synthetic")
    log(f"drawing synthetic films of {side} x {side} pixels")
    with tempfile.TemporaryDirectory(prefix="medmoco-bench-") as name:
        folder = Path(name)
        phantom(folder / "drawn", patients=_PATIENTS, image_size=side)
        drawn = sorted(path for path in (folder / "drawn" / "train").rglob("*") if path.is_file())
        needed = max(len(drawn), settings.method.queue_size + settings.train.global_batch_size)
        _write_manifest(folder, drawn, needed)
        data = {"manifest": folder, "root": str(folder), "labels": {}, "columns": {}, "pack": None}
        without = {"join": None, "where": None, "band_ranges": None}
        channels = settings.data.channels if isinstance(settings.data.channels, str) else "gray"
        update = {**data, **without, "channels": channels}
        yield settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _write_manifest(folder: Path, drawn: list[Path], needed: int) -> None:
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["Path", "PatientID"])
        for number, file in enumerate(islice(cycle(drawn), needed)):
            name = f"{number}{file.suffix}"
            os.link(file, folder / name)
            table.writerow([name, number // 2])  # two images of each patient, for `positives`
