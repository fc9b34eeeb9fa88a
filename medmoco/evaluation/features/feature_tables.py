"""`medmoco embed`: the features of a split as a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import require_column
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.inputs import load_unlabelled, writing

SUFFIXES = (".parquet", ".npz", ".csv")


def embed_split(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    split: str = "test",
    columns: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Write the features of a split's images: row numbers, the named columns, `feature_0`, `feature_1`, and so on.

    With data.bad_images=quarantine, unreadable images have NaN, and the reason in the column `error`.

    Args:
        settings: Settings of the data and the machine; they must match the encoder.
        encoder: See `load_encoder`.
        out: A .parquet, .npz or .csv file, which is replaced if it exists.
        split: train, val or test, with or without labels.
        columns: Columns of the manifest to copy; they may identify patients.
        log: Receives progress messages.

    Raises:
        SettingsError: the file cannot be written, or its library is not installed.
        CheckpointError, ManifestError, DataError: the encoder, the manifest or an image cannot be used.
    """
    _check_format(out)
    loaded = load_encoder(encoder, settings, log=log)
    rows = load_unlabelled(settings, split)
    for column in columns:
        require_column(rows, column, "--columns names")
    for notice in rows.notices:
        log(notice)
    log(f"features of {split}: {len(rows)} images")
    quarantine = settings.data.bad_images == "quarantine"
    table = loaded.embed(rows, as_frame=True, unreadable="nan" if quarantine else "raise", progress=True)
    for index, column in enumerate(dict.fromkeys(columns), 1):
        table.insert(index, column, rows.table[column].astype(str).to_numpy(object))
    write_features(table, out)
    return table


def write_features(table: pd.DataFrame, out: Path) -> None:
    """Write a table of `Encoder.embed`; .npz holds `features` (N, F) and an array for each other column.

    Raises:
        SettingsError: the file cannot be written.
    """
    _check_format(out)
    with writing(out) as temporary:
        if out.suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.9g")
        elif out.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            with temporary.open("wb") as stream:
                np.savez(stream, **_arrays(table))  # type: ignore[arg-type]


def _arrays(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns as arrays that load without pickle."""
    names = [name for name in table if str(name).startswith("feature_")]
    others = {str(name): column.to_numpy() for name, column in table.drop(columns=names).items()}
    return {
        "features": table[names].to_numpy(np.float32),
        **{name: values if values.dtype.kind in "iuf" else values.astype(str) for name, values in others.items()},
    }


def _check_format(out: Path) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    if out.suffix not in SUFFIXES:
        raise SettingsError(f"{out.name} has an unknown format; use one of {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise SettingsError(f"{out} is a folder; name a file")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise SettingsError("Parquet files need pyarrow: pip install pyarrow. Or write .npz or .csv")
