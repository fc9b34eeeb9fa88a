"""Settings, checks and packs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from medmoco.errors import SettingsError
from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    from medmoco.config import ConfigSource, RunSettings
    from medmoco.data.quality.audit import Audit

Log: TypeAlias = Callable[[str], None]


def load_config(source: ConfigSource, **overrides: Any) -> RunSettings:
    """Read settings: the defaults, replaced by those of the source, replaced by the overrides.

    Args:
        source: YAML file, nested mapping with the same keys, or settings that were loaded before.
        **overrides: Keys to change, such as `out="runs/a"`, or groups of keys, such as `train={"epochs": 10}`.

    Returns:
        The frozen tree of settings, which all functions take in place of a file.

    Raises:
        SettingsError: a key is unknown or a value is invalid; names the key.

    Examples:
        >>> import medmoco
        >>> config = medmoco.load_config("config.yaml", train={"epochs": 1}, out="runs/short")
        >>> config.train.epochs, config.train.global_batch_size
        (1, 8)
    """
    from medmoco.config import load

    return load(source, changes=overrides)


def check(
    config: ConfigSource,
    *,
    out: PathLike | None = None,
    against: Sequence[PathLike] = (),
    dask: str | None = None,
    log: Log = lambda _: None,
) -> Audit:
    """Check every row and image file of a manifest for faults, duplicates and leakage; resume if interrupted.

    Args:
        config: See `load_config`.
        out: Folder for report.txt and rows.csv; the run folder's name with "-check" appended if not given.
        against: YAML files or manifests of other pretraining data to look for in val and test.
        dask: Address of a Dask scheduler whose workers read the images.
        log: Receives progress messages.

    Returns:
        The findings; `audit.faults` are those that must be corrected, and `print(audit.text)` shows all of them.

    Raises:
        ManifestError: the manifest cannot be read.
        SettingsError: `out` cannot be written, or the cluster cannot be used.
        Stopped: a signal has requested it; the same call continues.

    Examples:
        >>> import medmoco
        >>> audit = medmoco.check("config.yaml")
        >>> audit.faults
        []
    """
    from medmoco.data.quality.audit import audit
    from medmoco.evaluation.leakage.shortcuts import find_provenance, find_shortcuts
    from medmoco.utils.jobs.cluster import on_cluster

    settings = load_config(config)
    folder = Path(out) if out else settings.out.with_name(f"{settings.out.name}-check")
    others = [Path(path) for path in against]
    with on_cluster(dask) as cluster:
        return audit(settings, folder, others, find_shortcuts, find_provenance, cluster, log)


@dataclass(frozen=True)
class Packed:
    """A pack on disk.

    Attributes:
        folder: Set `data.pack` to it.
        failed: Number of images that could not be packed; failed.csv in the folder lists their rows and the reasons.

    Examples:
        >>> import medmoco
        >>> packed = medmoco.pack("config.yaml", out="packed")
        >>> config = medmoco.load_config("config.yaml", data={"pack": packed.folder})
    """

    folder: Path
    failed: int


def pack(
    config: ConfigSource, *, out: PathLike | None = None, dask: str | None = None, log: Log = lambda _: None
) -> Packed:
    """Decode every image of a manifest once, for training to read; an unfinished pack is completed.

    Args:
        config: See `load_config`.
        out: Folder for the pack; `data.pack` if not given.
        dask: Address of a Dask scheduler whose workers decode the images.
        log: Receives progress messages.

    Raises:
        SettingsError: no folder is given, or the pack in it was made with other settings.
        DataError: the images or the pack cannot be used, or the disk refuses.

    Examples:
        >>> import medmoco
        >>> medmoco.pack("config.yaml", out="pack")
        Packed(folder=PosixPath('pack'), failed=0)
    """
    from medmoco.config.paths import is_url
    from medmoco.data.pack.pack_writing import make_pack
    from medmoco.utils.jobs.cluster import on_cluster

    settings = load_config(config)
    folder = out or settings.data.pack
    if folder is None or is_url(str(folder)):
        raise SettingsError("no folder for the pack: give --out, or set data.pack to a folder")
    with on_cluster(dask) as cluster:
        return Packed(Path(folder), make_pack(settings.data, Path(folder), log, cluster))


def pack_is_missing(settings: RunSettings) -> bool:
    """Return whether `data.pack` names a folder in which there is no pack yet, or an unfinished one."""
    from medmoco.config.paths import is_url
    from medmoco.data.pack.pack import INFO

    place = settings.data.pack
    return bool(place) and not is_url(str(place)) and not Path(str(place), INFO).is_file()


def pack_if_missing(settings: RunSettings, log: Log) -> None:
    """Make the pack that `data.pack` names, if it does not exist yet or is unfinished."""
    if pack_is_missing(settings):
        log(f"data.pack: {settings.data.pack} does not exist yet or is unfinished; making it first")
        pack(settings, log=log)
