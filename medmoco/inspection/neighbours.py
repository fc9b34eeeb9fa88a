"""`medmoco neighbours`: find the nearest neighbours of images in the feature space of an encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.features.inputs import feature_cache, features_of, find_rows, load_splits, writing
from medmoco.evaluation.features.probes import cosine_similarities
from medmoco.plotting.pictures import Tile, positives, read_views, shown, write_picture
from medmoco.utils.files import PathLike

_DIGITS = 6  # of cosines; with more, rounding errors would determine the order of copies of an image
COLUMNS = ("split", "row", "place", "bank", "neighbour_row", "cosine", "same_patient")


def neighbours(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    rows: Sequence[int],
    *,
    split: str = "val",
    bank: str = "train",
    count: int = 6,
    same_patient: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Find the nearest neighbours of images by the cosine similarity of their features.

    Writes a CSV of row numbers and cosines, and also a picture if `out` is a PNG, which shows patients.

    Args:
        config: Settings of the data and of preprocessing, see `load_config`.
        encoder: A run folder, a weights file, or "random".
        out: NAME.csv, or NAME.png, in which case NAME.csv is written as well.
        rows: Row numbers in the split, counted as in a spreadsheet.
        split: Split of the query images.
        bank: Split in which to search. An image is never its own neighbour.
        count: Number of neighbours per image; fewer if the bank has fewer images.
        same_patient: Whether other images of the same patient may be neighbours.
        log: Receives progress messages.

    Returns:
        The content of the CSV: one line per neighbour, nearest first.

    Raises:
        SettingsError: `out` has another suffix or cannot be written, or the run used other preprocessing.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the encoder cannot be loaded.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> len(medmoco.neighbours("config.yaml", "runs/phantoms", "neighbours.csv", [2, 3], count=4))
        8
    """
    settings, out = load(config), Path(out)
    if out.suffix.lower() not in (".png", ".csv"):
        raise SettingsError(
            f"--out {out.name}: give a .png for the picture and the table, or a .csv for the table only"
        )
    splits = load_splits(settings, (split, bank))
    for notice in (notice for part in splits.values() for notice in part.notices):
        log(notice)
    chosen = splits[split].select(find_rows(splits[split], rows))
    model = load_encoder(encoder, settings, log=log).as_evaluated
    cache = feature_cache(os.fspath(encoder), None, log)
    keys, queries = (
        features_of({"encoder": model}, part, settings, cache, log).features["encoder"]
        for part in (splits[bank], chosen)
    )
    table = nearest(chosen, queries, splits[bank], keys, count=count, same_patient=same_patient)
    with writing(out.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False, float_format=f"%.{_DIGITS}f")
    if out.suffix.lower() == ".png":
        _draw(table, chosen, splits[bank], settings, out)
    return table


def nearest(
    chosen: Split, queries: Features, bank: Split, keys: Features, *, count: int, same_patient: bool
) -> pd.DataFrame:
    """Return the nearest keys of each query, ties in the order of their rows.

    Args:
        chosen: The M query rows.
        queries: (M, F), their features.
        bank: The N rows to search.
        keys: (N, F), their features.
        count: Number of neighbours per query.
        same_patient: Whether other images of the same patient may be neighbours.

    Returns:
        A table with COLUMNS.
    """
    cosines = cosine_similarities(queries, keys).numpy().round(_DIGITS)  # (M, N)
    lines = []
    for row, patient, cosine in zip(chosen.rows, chosen.patients, cosines, strict=True):
        own = bank.patients == patient
        excluded = (bank.rows == row) & (bank.name == chosen.name) if same_patient else own
        usable = np.flatnonzero(~excluded)
        order = usable[np.argsort(-cosine[usable], kind="stable")[:count]]
        lines += [
            (chosen.name, row, rank, bank.name, bank.rows[key], cosine[key], own[key])
            for rank, key in enumerate(order, 1)
        ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _draw(table: pd.DataFrame, chosen: Split, bank: Split, settings: RunSettings, out: Path) -> None:
    """Write one line per query image: the image, followed by its neighbours."""
    lines = []
    images = read_views(chosen, np.arange(len(chosen)), settings)
    for position, row in enumerate(chosen.rows):
        nearest_rows = table[table["row"] == row]
        line = [Tile(shown(images[position], settings.data), f"{chosen.name} row {row}\n{positives(chosen, position)}")]
        keys = find_rows(bank, nearest_rows["neighbour_row"].tolist())
        views = read_views(bank, keys, settings) if keys.size else ()
        for key, near, pixels in zip(keys, nearest_rows.itertuples(), views, strict=True):
            patient = ", same patient" if near.same_patient else ""
            title = f"{bank.name} row {near.neighbour_row}\ncosine {near.cosine:.3f}{patient}\n"
            line.append(Tile(shown(pixels, settings.data), title + positives(bank, key)))
        lines.append(line)
    write_picture(lines, out)
