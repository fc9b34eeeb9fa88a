"""`medmoco predict`: a classifier's calibrated probabilities for the rows of a manifest, with or without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medmoco.config import RunSettings
from medmoco.errors import SettingsError
from medmoco.evaluation.features.inputs import load_unlabelled, writing
from medmoco.evaluation.supervised.classifier import load_classifier


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
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a CSV file")
    settings, changes = classifier.prepared(settings)
    for change in changes:
        log(change)
    rows = load_unlabelled(settings, split)
    if settings.evaluate.where:
        log(f"evaluate.where keeps {len(rows)} rows")
    for notice in rows.notices:
        log(notice)
    log(f"scoring {len(rows)} rows")
    table = replace(classifier, settings=settings).predict(rows)
    uncalibrated = [label for label in classifier.labels if classifier.facts.calibration[label].kind == "none"]
    if uncalibrated:
        log(f"not calibrated, since validation had only one class: {', '.join(uncalibrated)}")
    if with_path:
        table.insert(1, "Path", rows.table["Path"].to_numpy())
    with writing(out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return len(rows)
