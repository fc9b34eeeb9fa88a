"""`medmoco check`: reads every row and every file of a manifest and says what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import DataSettings, RunSettings, load
from medmoco.data.image_io.intensity import FIRST_OF_SEVERAL
from medmoco.data.manifest.file_checks import FileFault, check_files
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.quality import findings
from medmoco.data.quality.examine import Examined, examine
from medmoco.data.quality.findings import Finding, Rows, Shortcut, gather_rows, pixel_codes
from medmoco.data.quality.report_text import screen
from medmoco.errors import SettingsError
from medmoco.utils.progress import track

Floats = NDArray[np.float64]

FindShortcuts = Callable[[Sequence[Split], Mapping[str, Floats]], list[Shortcut]]
"""Finds each label's strongest trait among traits (R,) of all rows; given by the caller, as scoring lies above data."""


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        findings: All that was looked for; those without rows were not found.
        shortcuts: The trait that tells each label best.
        text: What a person reads.
    """

    findings: list[Finding]
    shortcuts: list[Shortcut]
    text: str

    @property
    def faults(self) -> list[Finding]:
        """The findings that end in exit code 3."""
        return [finding for finding in self.findings if finding.severity == "fault" and len(finding.rows)]


def audit(
    settings: RunSettings, out: Path, against: Sequence[Path] = (), find_shortcuts: FindShortcuts | None = None
) -> Report:
    """Check every row and file of the manifest; write report.txt, and rows.csv, which lists the rows to look at.

    Args:
        settings: Of the data; `data.workers` processes read.
        out: Folder for the two files. The second holds Paths and belongs where the data may be.
        against: YAML files or manifests of other pretraining data: their training rows are sought in val and test.
        find_shortcuts: Finds what labels can be told by without looking at the image.

    Raises:
        ManifestError: a manifest cannot be used, or symbolic links lead out of the root.
        SettingsError: `out` cannot be written, or another settings file cannot be read.
    """
    data = settings.data
    splits = list(load_manifest(data, present_splits(data)).values())
    for split in splits:
        check_files(split, data, [FileFault.OUTSIDE])  # not to be read; the rest is reported row by row
    others = _load_others(against, data)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "rows.csv").write_text("")  # better refused now than after hours of reading
    except OSError as error:
        raise SettingsError(f"{out} cannot be the folder of the report: {error.strerror}") from None
    rows, files, frames = gather_rows(splits, [split for split, _ in others])
    examined = examine(files, frames, data, partial(track, what="reading"))
    if all(split.names_frames for split in splits):
        examined.notices.pop(FIRST_OF_SEVERAL, None)
    pixels = pixel_codes(rows, examined)
    every = [*splits, *(split for split, _ in others)]
    found = [
        *findings.unreadable(rows, examined),
        *findings.doubtful_ids(rows, every),
        *findings.in_two_splits(rows, pixels),
        *findings.in_pretraining(rows, pixels, [same_root for _, same_root in others]),
        *findings.odd_images(rows, examined, data.canvas_size),
        *findings.mixed_formats(rows, examined),
        findings.same_pixels(rows, pixels),
        *findings.nearly_same(rows, examined, pixels),
    ]
    shortcuts = find_shortcuts(splits, _traits(rows, examined)) if find_shortcuts and data.labels else []
    shown = (splits, rows, examined, found, shortcuts)
    (out / "report.txt").write_text(screen(*shown, whole=True), encoding="utf-8")
    _list_rows(rows, found, every).to_csv(out / "rows.csv", index=False)
    return Report(found, shortcuts, screen(*shown))


def _load_others(against: Sequence[Path], data: DataSettings) -> list[tuple[Split, bool]]:
    """Load the training rows of other settings files or manifests; say too whether they are below the same root."""
    others = []
    for number, path in enumerate(against, 1):
        theirs = load(path).data if path.suffix in (".yaml", ".yml") else data.model_copy(update={"manifest": path})
        split = load_manifest(theirs.model_copy(update={"labels": {}}), ("train",))["train"]
        name = f"pretraining {number}" if len(against) > 1 else "pretraining"
        others.append((replace(split, name=name), os.path.abspath(theirs.root) == os.path.abspath(data.root)))
    return others


def _traits(rows: Rows, examined: Examined) -> dict[str, Floats]:
    """Return what is known of the images of train, val and test without looking at them; nan where unreadable."""
    files = rows.file[rows.own]
    readable = examined.readable[files]
    height, width = np.where(readable, examined.sizes[files].T, np.nan)
    traits = {"width": width, "height": height, "width / height": width / height}
    for at, field in enumerate(("file type", "bit depth", "photometric interpretation")):
        values = np.array([str(file_format[at]) for file_format in examined.formats], dtype=object)
        for value in sorted(set(values))[:-1]:  # the last is what the others leave
            traits[f"{field} {value}"] = np.where(readable, values[examined.format_of[files]] == value, np.nan)
    return traits


def _list_rows(rows: Rows, found: Sequence[Finding], every: Sequence[Split]) -> pd.DataFrame:
    """Return one line for each row and finding, faults first."""
    paths = np.concatenate([split.table["Path"].to_numpy(dtype=object) for split in every])
    sources = np.array(rows.sources, dtype=object)
    parts = [
        pd.DataFrame(
            {
                "split": sources[rows.source[finding.rows]],
                "row": rows.number[finding.rows],
                "severity": finding.severity,
                "fault": finding.kind,
                "detail": [" ".join(detail.split()) for detail in finding.details],
                "Path": paths[finding.rows],
            }
        )
        for finding in sorted(found, key=lambda one: one.severity != "fault")
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1])
