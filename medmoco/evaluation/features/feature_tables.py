"""`medmoco embed`: the features of a split as a file."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medmoco.config import ConfigSource, RunSettings, Tree, as_tree, load
from medmoco.data.image_io.limits import limits_of
from medmoco.data.manifest.columns import SERIES
from medmoco.data.manifest.manifest import Split, require_column
from medmoco.data.pack.pack import open_pack
from medmoco.data.pack.pack_cache import local_folder
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.features.embedding import (
    Computed,
    Options,
    Outputs,
    Unreadable,
    as_table,
    compute_batches,
    put_together,
)
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.features.encoder_files import RANDOM
from medmoco.evaluation.features.features import digests_from_array, digests_to_array
from medmoco.evaluation.features.image_sets import image_set
from medmoco.evaluation.features.inputs import key_of_features, load_unlabelled, on_device, writing
from medmoco.utils.files import PathLike
from medmoco.utils.jobs.blocks import Block, Result, Unfinished, blocks_of, states_of, unfinished, work_through
from medmoco.utils.jobs.cluster import Cluster, Needs, StopAsked, absolute, first_existing, on_cluster

SUFFIXES = (".parquet", ".npz", ".csv")
BLOCK = 1024  # about as many images are read again at most, per worker, after an interruption

Log = Callable[[str], None]

_LOADING = Lock()


def embed(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    split: str = "test",
    columns: Sequence[str] = (),
    dask: str | None = None,
    log: Log = lambda _: None,
) -> pd.DataFrame:
    """Write the features of a split's images: row numbers, the named columns, `feature_0`, `feature_1`, and so on.

    With data.bad_images=quarantine, unreadable images have NaN, and the reason in the column `error`. If it is
    interrupted, the features so far are kept in the folder OUT.unfinished, and the same call continues.

    Args:
        config: Settings of the data and the machine; they must match the encoder.
        encoder: See `load_encoder`.
        out: A .parquet, .npz or .csv file, which is replaced if it exists.
        split: train, val or test, with or without labels.
        columns: Columns of the manifest to copy; they may identify patients.
        dask: Address of a Dask scheduler whose workers read the images and compute the features.
        log: Receives progress messages.

    Returns:
        The table that was written.

    Raises:
        SettingsError: the file cannot be written, its library is not installed, or the cluster cannot be used.
        CheckpointError, ManifestError, DataError: the encoder, the manifest or an image cannot be used.
        Stopped: a signal has requested it.

    Examples:
        >>> import medmoco
        >>> table = medmoco.embed("config.yaml", "random", "features.npz", split="val")
        >>> table.columns[:2].tolist()
        ['row', 'feature_0']
    """
    out = Path(out)
    _check_format(out)
    with on_cluster(dask) as cluster:
        given = load(config)
        loaded = load_encoder(encoder, given, log=log)
        rows = load_unlabelled(given, split)
        for column in columns:
            require_column(rows, column, "--columns names")
        for notice in rows.notices:
            log(notice)
        log(f"features of {split}: {len(rows)} {given.data.noun}")
        unreadable: Unreadable = "nan" if given.data.bad_images == "quarantine" else "raise"
        job = _Job(loaded, os.fspath(encoder), unreadable)
        with unfinished(out.with_name(f"{out.name}.unfinished"), _depends_on(loaded, rows)) as kept:
            table = as_table(_compute(job, rows, kept, cluster, log), unreadable)
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


# Blocks of rows, here and on the workers of a cluster


@dataclass(frozen=True)
class _Job:
    """How features are computed."""

    encoder: Encoder
    source: str  # of the encoder
    unreadable: Unreadable

    @property
    def settings(self) -> RunSettings:
        """Settings with the preprocessing of the encoder."""
        return _settings_of(self.encoder)

    def for_workers(self) -> _Sent:
        """Return the job with absolute paths, and for a single thread."""
        data: Tree = {"workers": 0, "pack_cache": None}
        if self.settings.data.pack:
            data["pack"] = str(local_folder(self.settings.data).absolute())
        settings = self.settings.model_copy(update={"data": self.settings.data.model_copy(update=data)})
        source = self.source if self.source == RANDOM else absolute([self.source])[0]
        sha256 = self.encoder.provenance.weights_sha256
        return _Sent(source, sha256, json.dumps(as_tree(settings)), self.unreadable)


class _Sent(NamedTuple):
    """A job as sent to a worker, in text, so that it can be the key of a cache."""

    source: str  # of the encoder
    sha256: str  # of its weights
    settings: str  # JSON
    unreadable: Unreadable


@dataclass(frozen=True)
class _Part:
    """The rows of a block, as sent to a worker."""

    number: int
    rows: Split


def _settings_of(encoder: Encoder) -> RunSettings:
    return encoder.preprocessing.apply_to(encoder.settings or encoder.preprocessing.settings)[0]


def _rows_per_block(settings: RunSettings) -> int:
    """Return a multiple of the batch size: with other batches, the last bits of features might be others."""
    batch = settings.evaluate.batch_size
    return batch * max(1, BLOCK // batch)


def _depends_on(encoder: Encoder, rows: Split) -> list[Any]:
    """Return what features depend on, except the content of image files; see `unfinished`."""
    settings = _settings_of(encoder)
    if settings.data.pack:
        pack = open_pack(local_folder(settings.data), settings.data)
        images: list[Any] = [pack.info["files"], pack.find(rows, settings.data).tolist()]
    else:
        limits = astuple(limits_of(settings.data))
        images = [absolute(rows.files), rows.frames.tolist(), rows.series, limits]
    digest = hashlib.sha256(json.dumps([images, rows.csv.name, rows.rows.tolist()]).encode()).hexdigest()
    # The device of the settings, not the machine: those of a cluster may differ from this one.
    return [key_of_features(encoder.as_evaluated, digest, settings, [settings.train.device]), _rows_per_block(settings)]


def _compute(job: _Job, rows: Split, kept: Unfinished, cluster: Cluster | None, log: Log) -> Computed:
    """Return the features of all rows, computed in blocks here or on a cluster."""
    files = () if job.settings.data.pack else absolute(rows.files)
    outputs: list[Outputs] = []

    def make(todo: Sequence[Block], stop_asked: StopAsked) -> Iterator[int]:
        if not todo:
            return iter(())
        if cluster:
            return _compute_on(cluster, job, rows, kept, todo, stop_asked)
        which = np.concatenate([np.arange(block.range.start, block.range.stop) for block in todo])
        numbers = [block.number for block in todo]
        return _embed_blocks(kept, job.encoder, job.unreadable, rows.select(which), numbers, stop_asked)

    def take(_: Block, result: Result) -> None:
        digests = digests_from_array(result.arrays["digests"])
        outputs.append(Outputs(result.arrays["features"], digests, result.facts))

    blocks = blocks_of(len(rows), _rows_per_block(job.settings), files)
    work_through(blocks, kept, make, take, "computing features", log)
    return put_together(outputs, image_set(rows, None, job.settings), job.unreadable)


def _compute_on(
    cluster: Cluster, job: _Job, rows: Split, kept: Unfinished, todo: Sequence[Block], stop_asked: StopAsked
) -> Iterator[int]:
    sent = job.for_workers()
    columns = [name for name in ("Path", "Frame", SERIES) if name in rows.table]  # no others leave this machine
    rows = replace(rows, files=np.array(absolute(rows.files), rows.files.dtype), table=rows.table[columns])
    parts = (_Part(block.number, rows.select(np.arange(block.range.start, block.range.stop))) for block in todo)
    readable = {"the encoder": "" if sent.source == RANDOM else sent.source}
    if job.settings.data.pack:
        readable["the pack"] = str(local_folder(job.settings.data).absolute())
    else:
        readable["the images below data.root"] = first_existing(rows.files)
    return cluster.run(partial(_embed_parts, kept, sent), parts, stop_asked, Needs(kept.folder, readable))


def _embed_parts(kept: Unfinished, sent: _Sent, parts: Iterable[_Part], stop_asked: StopAsked) -> Iterator[int]:
    with _LOADING:  # once, even if all threads of the worker ask for it
        encoder = _load_once(sent)
    for part in parts:
        yield from _embed_blocks(kept, encoder, sent.unreadable, part.rows, [part.number], stop_asked)


@lru_cache(maxsize=1)
def _load_once(sent: _Sent) -> Encoder:
    encoder = load_encoder(sent.source, load(json.loads(sent.settings)))
    if encoder.provenance.weights_sha256 != sent.sha256:
        raise CheckpointError(
            f"--dask: on {socket.gethostname()}, the encoder has other weights than here. If it is a run that has not\n"
            "ended, wait for its end; otherwise, give all workers the same files"
        )
    return encoder


def _embed_blocks(
    kept: Unfinished, encoder: Encoder, unreadable: Unreadable, rows: Split, numbers: Sequence[int],
    stop_asked: StopAsked,
) -> Iterator[int]:  # fmt: skip
    """Compute the features of consecutive blocks of rows until asked to stop; yield the number of images of each batch.

    All blocks are read by the same data workers, so that these are never idle.
    """
    settings, module = _settings_of(encoder), encoder.as_evaluated
    on_device(module, settings)
    size = _rows_per_block(settings)
    states = states_of([] if settings.data.pack else rows.files.tolist())
    images = image_set(rows, None, settings)
    if numbers[0]:  # "the first 64 images" of an error are not those of the split
        images = images._replace(what=f"{images.what} from row {rows.rows[0]}")
    batches = compute_batches(module, encoder.preprocessing, settings, images, Options(unreadable=unreadable))
    block: list[Outputs] = []
    done = 0
    with closing(batches):
        for batch in batches:
            if stop_asked():
                return
            block.append(batch)
            done += len(batch)
            if done % size == 0 or done == len(rows):
                number = (done - 1) // size
                kept.write(numbers[number], _as_result(block), states[number * size : done])
                block = []
            yield len(batch)


def _as_result(block: Sequence[Outputs]) -> Result:
    arrays = {
        "features": np.concatenate([batch.values for batch in block]),
        "digests": digests_to_array([digest for batch in block for digest in batch.digests]),
    }
    return Result(arrays, [error for batch in block for error in batch.errors])
