"""Settings, checks, packs and splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoco.errors import SettingsError

if TYPE_CHECKING:
    from medmoco.config import ConfigSource, RunSettings
    from medmoco.data.quality.audit import Audit

PathLike = str | os.PathLike[str]
Log = Callable[[str], None]


def load_config(source: ConfigSource, **overrides: Any) -> RunSettings:
    """Read settings: defaults, then the source, then the overrides.

    Args:
        source: YAML file, nested mapping with the same keys, or settings that are already loaded.
        **overrides: Groups or keys to change, such as `train={"epochs": 10}` or `out="runs/a"`.

    Returns:
        The frozen tree of settings, which every function of medmoco takes in place of a file.

    Raises:
        SettingsError: a key is unknown, or a value is impossible; names the key.

    Example:
        >>> import medmoco
        >>> config = medmoco.load_config("configs/demo.yaml", train={"epochs": 2}, out="runs/short")
        >>> config.train.epochs, config.model.backbone
        (2, 'resnet18')
    """
    from medmoco.config import load

    return load(source, changes=overrides)


def check(config: ConfigSource, *, out: PathLike | None = None, against: Sequence[PathLike] = ()) -> Audit:
    """Read every row and every image of a manifest, and report what is wrong with them.

    Args:
        config: See `load_config`.
        out: Folder for report.txt and rows.csv; without it, the run folder's name with "-check" appended.
        against: YAML files or manifests of other pretraining data, whose images are sought in val and test.

    Returns:
        The findings. `audit.faults` are those that training or evaluation would refuse; `print(audit.text)` shows all.

    Raises:
        ManifestError: the manifest cannot be read at all.
        SettingsError: `out` cannot be written.

    Example:
        >>> audit = medmoco.check("configs/demo.yaml")
        >>> audit.faults
        []
    """
    from medmoco.data.quality.audit import audit
    from medmoco.evaluation.leakage.shortcuts import find_shortcuts

    settings = load_config(config)
    folder = Path(out) if out else settings.out.with_name(f"{settings.out.name}-check")
    return audit(settings, folder, [Path(path) for path in against], find_shortcuts)


@dataclass(frozen=True)
class Packed:
    """A pack on disk.

    Attributes:
        folder: Use it with `data.pack`.
        failed: Images that could not be packed; `failed.csv` in the folder lists their rows and the reasons.
    """

    folder: Path
    failed: int


def pack(
    config: ConfigSource,
    *,
    out: PathLike | None = None,
    dask: str | None = None,
    log: Log = lambda _: None,
) -> Packed:
    """Decode every image of a manifest once, for training to read; a pack that is unfinished is continued.

    Args:
        config: See `load_config`.
        out: Folder of the pack; without it, `data.pack`.
        dask: Address of a Dask scheduler whose workers decode the images.
        log: Receives progress messages.

    Raises:
        SettingsError: no folder is given, or the pack was made with other settings.
        DataError: the images or the disk refuse.

    Example:
        >>> medmoco.pack("configs/demo.yaml", out="packs/demo").failed
        0
    """
    from medmoco.config.paths import is_url
    from medmoco.data.pack.pack_writing import make_pack

    settings = load_config(config)
    folder = out or settings.data.pack
    if folder is None or is_url(str(folder)):
        raise SettingsError("give --out, or set data.pack to the folder for the pack")
    if dask is None:
        return Packed(Path(folder), make_pack(settings.data, Path(folder), log))
    from medmoco.data.pack.pack_dask import on_cluster

    with on_cluster(dask) as write:
        return Packed(Path(folder), make_pack(settings.data, Path(folder), log, write))


def pack_if_missing(settings: RunSettings, log: Log) -> None:
    """Make the pack that `data.pack` names if it is not there yet."""
    from medmoco.config.paths import is_url
    from medmoco.data.pack.pack import INFO

    place = settings.data.pack
    if place and not is_url(place) and not Path(place, INFO).is_file():
        log(f"data.pack: {place} does not exist yet or is unfinished; making it first")
        pack(settings, log=log)
