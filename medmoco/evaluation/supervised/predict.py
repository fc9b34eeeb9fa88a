"""`medmoco predict`: a classifier's calibrated probabilities for the rows of a manifest, or for files and folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medmoco.config import RunSettings
from medmoco.data.loading.preprocessing import without_data
from medmoco.errors import ImageError, SettingsError
from medmoco.evaluation.features.image_sets import files_in
from medmoco.evaluation.features.inputs import load_unlabelled, writing
from medmoco.evaluation.supervised.classifier import Classifier, load_classifier


def predict(
    settings: RunSettings,
    folder: Path,
    out: Path,
    *,
    split: str = "test",
    with_path: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> int:
    """Write a CSV of row numbers and the probability of each label, and return the number of rows.

    Args:
        settings: Settings of the data and the machine; preprocessing is that of the classifier.
        folder: Classifier folder.
        out: CSV file, which is replaced if it exists.
        split: train, val or test; its labels are not used.
        with_path: Add the Path of every row, which may identify the patient.
        log: Receives progress messages.

    Raises:
        CheckpointError: the folder cannot be used.
        ManifestError, DataError: the manifest or an image cannot be used.
        SettingsError: the CSV cannot be written.
    """
    classifier = load_classifier(folder)
    settings, changes = classifier.prepared(settings)
    _begin(classifier, changes, out, log)
    rows = load_unlabelled(settings, split)
    if settings.evaluate.where:
        log(f"evaluate.where keeps {len(rows)} rows")
    for notice in rows.notices:
        log(notice)
    log(f"scoring {len(rows)} rows")
    table = replace(classifier, settings=settings).predict(rows, progress=True)
    if with_path:
        table.insert(1, "Path", rows.table["Path"].to_numpy())
    _write(table, out)
    return len(rows)


def predict_files(
    images: Sequence[Path],
    folder: Path,
    out: Path,
    *,
    settings: RunSettings | None = None,
    overrides: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Write a CSV with the name of each file as given, the probability of each label, and why a file is unreadable.

    The other files are predicted nevertheless. Of a file with several frames, the first is used.

    Args:
        images: Files and folders, whose images are found recursively; a file found twice is predicted once.
        folder: Classifier folder.
        out: CSV file, which is replaced if it exists.
        settings: Settings of the machine; by default those that the classifier needs.
        overrides: Texts such as "train.device=cpu", in place of `settings`.
        log: Receives progress messages.

    Returns:
        The number of files, and of those that cannot be read.

    Raises:
        CheckpointError: the classifier folder cannot be used.
        ImageError: a folder contains no images.
        SettingsError: the settings are invalid, or the CSV cannot be written.
    """
    classifier = load_classifier(folder)
    machine = settings or without_data(overrides)
    own, changes = classifier.prepared(machine)
    _begin(classifier, changes if settings else [], out, log)
    files: list[Path] = []
    for image in images:
        try:
            files += files_in(image, bands=isinstance(classifier.preprocessing.channels, int))
        except ImageError as error:
            raise ImageError(f"--images {image}: {error}") from None
    files = list(dict.fromkeys(files))
    log(f"scoring {len(files)} files")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of unreadable files, which are counted below
        table = replace(classifier, settings=own).predict(files, unreadable="nan", progress=True)
    reasons = [
        reason.replace("\n", " ") if file.exists() else "the file does not exist"
        for file, reason in zip(files, table["error"], strict=True)
    ]
    table = table.drop(columns="row").assign(error=reasons)
    table.insert(0, "Path", [str(file) for file in files])
    _write(table, out)
    return len(files), sum(map(bool, reasons))


def _begin(classifier: Classifier, changes: Sequence[str], out: Path, log: Callable[[str], None]) -> None:
    """Refuse an output that cannot be written, before any work is done, and log what the reader should know."""
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a CSV file")
    for change in changes:
        log(change)
    uncalibrated = [label for label in classifier.labels if classifier.facts.calibration[label].kind == "none"]
    if uncalibrated:
        log(f"not calibrated, since validation had only one class: {', '.join(uncalibrated)}")


def _write(table: pd.DataFrame, out: Path) -> None:
    with writing(out) as temporary:  # names of files need not be valid UTF-8
        table.to_csv(temporary, index=False, float_format="%.6g", errors="surrogateescape")
