"""A classifier's calibrated probabilities for the rows of a manifest, which needs no labels: `medmoco predict`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medmoco.config import RunSettings
from medmoco.errors import SettingsError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.utils.files import replacing


def predict(
    settings: RunSettings,
    folder: Path,
    out: Path,
    *,
    split: str = "test",
    with_path: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> int:
    """Write a CSV of row numbers and the probability of each label.

    Args:
        settings: Of the data and the machine; images are prepared as for the classifier.
        folder: A classifier folder.
        out: CSV file, in place of one that is there.
        split: train, val or test; labels it may have are not looked at.
        with_path: Add the Path of every row, which may say who the patient is.
        log: Told what the user should know.

    Returns:
        How many rows were written.

    Raises:
        CheckpointError: the folder cannot be used.
        ManifestError, DataError: the manifest or an image cannot be used.
        SettingsError: the CSV cannot be written.
    """
    classifier = load_classifier(folder)
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a CSV file")
    settings, changes = classifier.prepared(settings)
    for change in changes:
        log(change)
    unlabelled = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": {}})})
    rows = load_splits(unlabelled, [split], patients_matter=False)[split]
    if settings.evaluate.where:
        log(f"evaluate.where keeps {len(rows)} rows")
    for notice in rows.notices:
        log(notice)
    log(f"scoring {len(rows)} rows")
    table = replace(classifier, settings=settings).predict(rows)
    uncalibrated = [label for label in classifier.labels if classifier.facts.calibration[label].kind == "none"]
    if uncalibrated:
        log(f"not calibrated, as validation could not tell: {', '.join(uncalibrated)}")
    if with_path:
        table.insert(1, "Path", rows.table["Path"].to_numpy())
    _write(table, out)
    return len(rows)


def _write(table: pd.DataFrame, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
