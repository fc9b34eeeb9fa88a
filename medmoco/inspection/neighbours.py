"""The images that an encoder finds most alike: `medmoco neighbours`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.features.inputs import features_of, find_rows, load_splits
from medmoco.plotting.pictures import Tile, positives, read_views, shown, write_picture

_DIGITS = 6  # of a cosine, as it is written; more would put copies of an image in the order of rounding errors
COLUMNS = ("split", "row", "place", "bank", "neighbour_row", "cosine", "same_patient")


def neighbours(
    settings: RunSettings,
    encoder: str,
    out: Path,
    rows: Sequence[int],
    *,
    split: str = "val",
    bank: str = "train",
    count: int = 6,
    same_patient: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Find the nearest neighbours of chosen images by the cosine of their features.

    Writes a CSV of row numbers and cosines, and where `out` is a PNG the picture too, which shows patients.

    Args:
        settings: Of the data and of how the encoder is fed.
        encoder: A run folder, a weights file, or "random".
        out: NAME.csv, or NAME.png, beside which NAME.csv is written.
        rows: Of the split, as a spreadsheet counts them.
        split: Where the chosen rows are.
        bank: The split whose images are compared with them. An image is never its own neighbour.
        count: Neighbours of each; fewer where the bank has fewer.
        same_patient: Other images of the same patient count too.
        log: Told what is being done.

    Returns:
        What the CSV holds: one line per neighbour, the nearest first.

    Raises:
        SettingsError: `out` is neither, or cannot be written; the run was fed differently.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the encoder cannot be loaded.
        DataError: an image cannot be used.
    """
    if out.suffix.lower() not in (".png", ".csv"):
        raise SettingsError(f"--out {out.name}: name a .png for the picture and the table, or a .csv for the table")
    splits = load_splits(settings, (split, bank))
    for notice in (notice for found in splits.values() for notice in found.notices):
        log(notice)
    asked = splits[split].select(find_rows(splits[split], rows))
    model = load_encoder(encoder, settings, log=log).as_evaluated
    log(f"features of {bank}: {len(splits[bank])} images")
    keys = features_of(splits[bank], model, settings)
    queries = features_of(asked, model, settings)
    table = nearest(asked, queries, splits[bank], keys, count=count, same_patient=same_patient)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out.with_suffix(".csv"), index=False, float_format=f"%.{_DIGITS}f")
    except OSError as error:
        raise SettingsError(f"{out.with_suffix('.csv')} cannot be written: {error.strerror}") from None
    if out.suffix.lower() == ".png":
        _draw(table, asked, splits[bank], settings, out)
    return table


def nearest(
    asked: Split, queries: Features, bank: Split, keys: Features, *, count: int, same_patient: bool
) -> pd.DataFrame:
    """List the nearest keys of each query, equal ones in the order of their rows.

    Args:
        asked: The M chosen rows.
        queries: (M, F), their features.
        bank: The N rows to choose from.
        keys: (N, F), theirs.
        count: Neighbours of each.
        same_patient: Other images of the same patient count too.

    Returns:
        A table with COLUMNS.
    """
    unit_queries, unit_keys = (normalize(torch.from_numpy(values).double(), dim=1) for values in (queries, keys))
    cosines = (unit_queries @ unit_keys.T).numpy().round(_DIGITS)  # (M, N)
    lines = []
    for row, patient, cosine in zip(asked.rows, asked.patients, cosines, strict=True):
        own = bank.patients == patient
        left_out = (bank.rows == row) & (bank.name == asked.name) if same_patient else own
        usable = np.flatnonzero(~left_out)
        order = usable[np.argsort(-cosine[usable], kind="stable")[:count]]
        lines += [
            (asked.name, row, place, bank.name, bank.rows[key], cosine[key], own[key])
            for place, key in enumerate(order, 1)
        ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _draw(table: pd.DataFrame, asked: Split, bank: Split, settings: RunSettings, out: Path) -> None:
    """Write one line per chosen image: itself, then its neighbours."""
    lines = []
    images = read_views(asked, np.arange(len(asked)), settings)
    for position, row in enumerate(asked.rows):
        found = table[table["row"] == row]
        line = [Tile(shown(images[position], settings.data), f"{asked.name} row {row}\n{positives(asked, position)}")]
        places = find_rows(bank, found["neighbour_row"].tolist())
        views = read_views(bank, places, settings) if places.size else ()
        for place, near, pixels in zip(places, found.itertuples(), views, strict=True):
            patient = ", same patient" if near.same_patient else ""
            title = f"{bank.name} row {near.neighbour_row}\ncosine {near.cosine:.3f}{patient}\n"
            line.append(Tile(shown(pixels, settings.data), title + positives(bank, place)))
        lines.append(line)
    write_picture(lines, out)
