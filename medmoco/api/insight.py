"""What an encoder or a classifier responds to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmoco.api.data import Log, load_config
from medmoco.api.evidence import sources_of
from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    import pandas as pd

    from medmoco.api.evidence import Encoders
    from medmoco.config import ConfigSource


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
    log: Log = lambda _: None,
) -> pd.DataFrame:
    """Find the images whose features are most similar to those of some images.

    Args:
        config: See `load_config`.
        encoder: Run, export, weights file, or "random".
        out: NAME.png, which shows patients, written with NAME.csv; or NAME.csv alone.
        rows: Row numbers in the split, counted as in a spreadsheet.
        split: Split of these images.
        bank: Split that is searched.
        count: Neighbours per image.
        same_patient: Allow other images of the same patient.
        log: Receives progress messages.

    Returns:
        The table in NAME.csv: row, rank, neighbour's row, cosine similarity and labels.

    Raises:
        SettingsError, DataError, CheckpointError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> len(medmoco.neighbours("config.yaml", "runs/phantoms", "neighbours.csv", [2, 3], count=4))
        8
    """
    from medmoco.inspection.neighbours import neighbours as find

    return find(
        load_config(config), os.fspath(encoder), Path(out), rows, split=split, bank=bank, count=count,
        same_patient=same_patient, log=log,
    )  # fmt: skip


def projection(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    split: str = "val",
    colour: str | None = None,
    log: Log = lambda _: None,
) -> str:
    """Project a split's features to two dimensions by PCA and t-SNE.

    Args:
        config: See `load_config`.
        encoder: Run, export, weights file, or "random".
        out: Folder for projection.csv, projection.svg and projection.png.
        split: Split to project.
        colour: Label that colours the points; the first if not given.
        log: Receives progress messages.

    Returns:
        A summary with the trustworthiness of the projection.

    Raises:
        SettingsError, DataError, CheckpointError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> print(medmoco.projection("config.yaml", "runs/phantoms", "projection", split="train"))  # doctest: +SKIP
    """
    from medmoco.inspection.projection import projection as project

    return project(load_config(config), os.fspath(encoder), Path(out), split=split, colour=colour, log=log)


def placement(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike,
    *,
    split: str = "val",
    perturbations: Sequence[str] = (),
    log: Log = lambda _: None,
) -> str:
    """Measure retrieval under perturbation: the rank of each image's perturbed copy among all images of a split.

    Args:
        config: See `load_config`.
        encoders: As of `evaluate`.
        out: Folder for placement.json, histogram.csv, figures and the table.
        split: Split of the images.
        perturbations: Of "flip", "rotate:10", "crop:0.7", "intensity:0.2" and "view"; all of them if empty.
        log: Receives progress messages.

    Returns:
        The table.

    Raises:
        SettingsError, DataError, CheckpointError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> table = medmoco.placement("config.yaml", "runs/phantoms", "placement", perturbations=["flip"])
        >>> "flip" in table
        True
    """
    from medmoco.inspection.retrieval import placement as place

    named = sources_of(encoders)
    return place(load_config(config), named, Path(out), split=split, perturbations=perturbations, log=log)


def saliency(
    config: ConfigSource,
    classifier: PathLike,
    out: PathLike,
    rows: Sequence[int],
    label: str,
    *,
    split: str = "val",
    log: Log = lambda _: None,
) -> str:
    """Draw which regions a classifier's score depends on: scores of patches, or Grad-CAM. The picture shows patients.

    Args:
        config: See `load_config`.
        classifier: Folder written by `evaluate` or `finetune`.
        out: PNG file to write.
        rows: Row numbers in the split, counted as in a spreadsheet.
        label: One of the classifier's labels.
        split: Split of the images.
        log: Receives progress messages.

    Returns:
        A summary with the comparison to a randomly initialised encoder.

    Raises:
        SettingsError, DataError, CheckpointError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> folder = "runs/phantoms/evaluation/classifier"
        >>> print(medmoco.saliency("config.yaml", folder, "saliency.png", [2], "Opacity"))  # doctest: +SKIP
    """
    from medmoco.inspection.saliency import saliency as draw

    return draw(load_config(config), Path(classifier), Path(out), rows, label, split=split, log=log)


def reconstruct(
    config: ConfigSource,
    run: PathLike,
    out: PathLike,
    rows: Sequence[int],
    *,
    split: str = "val",
    log: Log = lambda _: None,
) -> str:
    """Draw images next to what a run's decoder reconstructs from their embeddings. The picture shows patients.

    Args:
        config: See `load_config`.
        run: Run with a decoder.
        out: PNG file to write.
        rows: Row numbers in the split, counted as in a spreadsheet.
        split: Split of the images.
        log: Receives progress messages.

    Returns:
        A summary with the errors.

    Raises:
        SettingsError, DataError, CheckpointError: as `evaluate`; the run has no decoder.

    Example:
        >>> import medmoco
        >>> print(medmoco.reconstruct("decoder.yaml", "runs/decoder", "decoder.png", [2, 3]))  # doctest: +SKIP
    """
    from medmoco.inspection.reconstruct import reconstruct as draw

    return draw(load_config(config), Path(run), Path(out), rows, split=split, log=log)
