"""Reports, with images of the runs' data if they are asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medmoco.api.data import Log
from medmoco.errors import MedmocoError
from medmoco.utils.files import PathLike

_IMAGES = 4  # rows whose views and neighbours are drawn
_VIEWS = 6
_NEIGHBOURS = 4


def report(
    runs: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    card: PathLike | None = None,
    images: bool = False,
    pictures: Sequence[PathLike] = (),
    title: str = "",
    log: Log = lambda _: None,
) -> Path:
    """Write one HTML file about one or several runs, side by side; it works offline.

    Args:
        runs: Run folder, or several.
        out: HTML file to write; report.html in the first folder if not given.
        card: Model card of the first run, instead of the one in its folder.
        images: Show the views of a few training images of each run, and the nearest neighbours of a few validation
            images, drawn from its data; they show patients, so the page then carries a warning.
        pictures: PNG files to include; they may show patients.
        title: Title of the page; by default, what was trained on which images.
        log: Receives the main results, one sentence at a time, and the progress of the images.

    Returns:
        The file.

    Raises:
        SettingsError: a folder is not a run, a picture is not a PNG file, or the file cannot be written.
        CheckpointError: a file of a run is damaged.
        DataError: the images of a run cannot be read.

    Examples:
        >>> import medmoco
        >>> medmoco.report("runs/phantoms").name
        'report.html'
    """
    from medmoco.reporting.report import write_report

    folders = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    with tempfile.TemporaryDirectory(prefix="medmoco-report-") as scratch:
        drawn = _images(folders, Path(scratch), log) if images else {}
        return write_report(folders, out, card=card, images=drawn, pictures=pictures, title=title, log=log)


def _images(folders: Sequence[Path], scratch: Path, log: Log) -> dict[str, Path]:
    """Draw the images of each run into a folder, and return them by their captions."""
    from medmoco.reporting.runs import run_names

    found: dict[str, Path] = {}
    for at, (folder, name) in enumerate(zip(folders, run_names(folders), strict=True)):
        try:
            found |= _images_of(folder, scratch / str(at), f" of {name}" if len(folders) > 1 else "", log)
        except MedmocoError as error:
            where = f"--images: the images of {name} cannot be drawn from its config.yaml and data"
            raise type(error)(f"{where}: {error}\nWrite the report where the data are, or without --images.") from None
    return found


def _images_of(folder: Path, scratch: Path, of: str, log: Log) -> dict[str, Path]:
    from medmoco.config import load
    from medmoco.data.loading.preview import preview
    from medmoco.data.manifest.manifest import load_manifest, present_splits
    from medmoco.inspection.neighbours import neighbours

    settings = load(folder / "config.yaml")
    views = preview(settings, scratch / "views.png", images=_IMAGES, views=_VIEWS)
    split = "val" if "val" in present_splits(settings.data) else "train"
    queries = load_manifest(settings.data, (split,), patients_matter=False)[split]
    chosen = queries.rows[queries.spread(_IMAGES)].tolist()
    near = scratch / "neighbours.png"
    neighbours(settings, folder, near, chosen, split=split, bank=split, count=_NEIGHBOURS, log=log)
    return {
        f"Training images{of}: each line is a whole image, followed by views that training makes of it.": views,
        f"Nearest neighbours{of} on the {split} split: each line is an image, followed by the images of other patients"
        " with the most similar features.": near,
    }
