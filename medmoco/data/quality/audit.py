"""`medmoco check`: read every row and every file of a manifest and report faults, duplicates and leakage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import DataSettings, RunSettings, load
from medmoco.data.image_io.intensity import FIRST_OF_SEVERAL
from medmoco.data.manifest.file_checks import FileFault, check_files
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.manifest.splits import DUPLICATES
from medmoco.data.quality import findings, volume_findings
from medmoco.data.quality.duplicates import Groups
from medmoco.data.quality.examine import Examined, examine, no_margins, reading_of
from medmoco.data.quality.findings import Finding, Provenance, Rows, Shortcut, gather_rows, pixel_codes
from medmoco.data.quality.margins import Margins
from medmoco.data.quality.report_text import format_report
from medmoco.errors import SettingsError
from medmoco.utils.jobs.blocks import unfinished
from medmoco.utils.jobs.cluster import Cluster, first_existing

UNFINISHED = "unfinished"  # folder of the results so far, removed when the report is complete

Floats = NDArray[np.float64]

FindShortcuts = Callable[[Sequence[Split], Mapping[str, Floats]], list[Shortcut]]
"""Finds the trait that best predicts each label, among traits (R,) of all rows; passed in by the caller, since scoring
is in a higher layer than data."""

FindProvenance = Callable[[Sequence[Split], RunSettings, Margins, NDArray[np.bool_]], Provenance]
"""Predicts labels from what says where images come from; receives the margins of all rows, and whether they are known.
Passed in by the caller, too."""


@dataclass(frozen=True)
class Audit:
    """The result of `medmoco check`."""

    findings: list[Finding]  # results of all checks; those without rows found nothing
    shortcuts: list[Shortcut]  # the size or format that best predicts each label
    provenance: Provenance  # how well labels are predicted by what says where images come from
    text: str
    folder: Path  # contains report.txt, rows.csv and duplicates.csv

    @property
    def faults(self) -> list[Finding]:
        """The findings for which `check` exits with code 3."""
        return [finding for finding in self.findings if finding.severity == "fault" and len(finding.rows)]


def audit(
    settings: RunSettings,
    out: Path,
    against: Sequence[Path] = (),
    find_shortcuts: FindShortcuts | None = None,
    find_provenance: FindProvenance | None = None,
    cluster: Cluster | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Check every row and file of the manifest; write report.txt, rows.csv (rows to correct) and duplicates.csv.

    If it is interrupted, the results of the files that were read are kept in the folder `unfinished`.

    Args:
        settings: Settings of the data.
        out: Folder for the files. The CSVs contain Paths and must be kept where the data may be stored.
        against: YAML files or manifests of other pretraining data, whose training rows are sought in val and test.
        find_shortcuts: Finds sizes and formats that predict labels without the image content.
        find_provenance: Predicts labels from paths, IDs, columns, file dates and image borders.
        cluster: Reads the files; None means this machine, with `data.workers` processes.
        log: Receives progress messages.

    Raises:
        ManifestError: a manifest is invalid, or symbolic links lead out of the root.
        SettingsError: `out` cannot be written, another settings file cannot be read, or the cluster cannot access the
            files.
        Stopped: a signal has requested it; what was read is kept.
    """
    data = settings.data
    splits = list(load_manifest(data, present_splits(data)).values())
    for split in splits:
        check_files(split, data, [FileFault.OUTSIDE])  # must not be read; other faults are reported row by row
    others = _load_others(against, data)
    every = [*splits, *(split for split, _ in others)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "rows.csv").write_text("")  # fails now instead of after hours of reading
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    rows, images = gather_rows(splits, [split for split, _ in others], data.dimensions)
    readable = {f"the {rows.noun}s of {split.name}": first_existing(split.files) for split in every} if cluster else {}
    with unfinished(out / UNFINISHED, reading_of(images, data)) as kept:
        examined = examine(images, data, kept, cluster=cluster, readable=readable, log=log)
        if all(split.names_frames for split in splits):
            examined.notices.pop(FIRST_OF_SEVERAL, None)
        results, groups = _find(rows, examined, settings, every, [same_root for _, same_root in others])
        shortcuts = find_shortcuts(splits, _traits(rows, examined)) if find_shortcuts and data.labels else []
        provenance = Provenance()
        if find_provenance and data.labels:
            provenance = find_provenance(splits, settings, *_margins(rows, examined))
        content = (splits, rows, examined, results, shortcuts, provenance)
        (out / "report.txt").write_text(format_report(*content, all_labels=True), encoding="utf-8")
        _list_rows(rows, results, every).to_csv(out / "rows.csv", index=False)
        groups.table(splits).to_csv(out / DUPLICATES, index=False)
    return Audit(results, shortcuts, provenance, format_report(*content), out)


def _find(
    rows: Rows, examined: Examined, settings: RunSettings, every: Sequence[Split], same_roots: list[bool]
) -> tuple[list[Finding], Groups]:
    """Return the results of all checks, and the groups of rows with the same image."""
    pixels = pixel_codes(rows, examined)
    groups = Groups(len(rows.file))
    groups.join_equal(rows.file, rows.own)
    groups.join_equal(pixels, rows.own)
    results = [
        *findings.unreadable(rows, examined),
        *findings.doubtful_ids(rows, every),
        *findings.in_two_splits(rows, pixels),
        *findings.in_pretraining(rows, pixels, same_roots),
        *(_of_volumes if settings.data.dimensions == 3 else _of_images)(rows, examined, settings),
        findings.same_pixels(rows, pixels),
        *findings.nearly_same(rows, examined, pixels, groups),
    ]
    return results, groups


def _of_images(rows: Rows, examined: Examined, settings: RunSettings) -> Iterator[Finding]:
    yield from findings.odd_images(rows, examined, settings.data.canvas_size)
    yield findings.elongated(rows, examined, settings)
    yield from findings.mixed_formats(rows, examined)


def _of_volumes(rows: Rows, examined: Examined, settings: RunSettings) -> Iterator[Finding]:
    yield findings.constant(rows, examined)
    yield from findings.noticed(rows, examined)
    yield volume_findings.small_canvases(rows, examined, settings)
    yield volume_findings.odd_spacings(rows, examined)
    if any(getattr(one, "modality", "") for one in examined.formats):  # else nothing could be found
        yield findings.minority(rows, examined, "modalities", "modality")


def _margins(rows: Rows, examined: Examined) -> tuple[Margins, NDArray[np.bool_]]:
    """Return the margins of the images of train, val and test, and whether they are known; those of volumes are not."""
    own = rows.file[rows.own]
    if rows.dimensions == 3:
        return no_margins(len(own)), np.zeros(len(own), bool)
    return examined.margins[own], examined.readable[own]


def _load_others(against: Sequence[Path], data: DataSettings) -> list[tuple[Split, bool]]:
    """Return the training rows of other settings files or manifests, and whether they have the same root."""
    others = []
    whole = data.model_copy(update={"join": None, "where": None})  # a bare manifest is compared as a whole
    for number, path in enumerate(against, 1):
        bare = path.suffix not in (".yaml", ".yml")
        theirs = whole.model_copy(update={"manifest": path}) if bare else load(path).data
        split = load_manifest(theirs.model_copy(update={"labels": {}}), ("train",), if_there=bare)["train"]
        name = f"pretraining {number}" if len(against) > 1 else "pretraining"
        others.append((replace(split, name=name), os.path.abspath(theirs.root) == os.path.abspath(data.root)))
    return others


def _traits(rows: Rows, examined: Examined) -> dict[str, Floats]:
    """Return traits of the images of train, val and test other than their content; nan for unreadable files."""
    files = rows.file[rows.own]
    readable = examined.readable[files]
    fields: tuple[str, ...] = ("file type", "modality")
    if rows.dimensions == 3:
        traits = volume_findings.traits(rows, examined)
    else:
        height, width = np.where(readable, examined.sizes[files].T, np.nan)
        traits = {"width": width, "height": height, "width / height": width / height}
        fields = ("file type", "bit depth", "photometric interpretation")
    for at, field in enumerate(fields):
        values = np.array([str(file_format[at]) or "not stated" for file_format in examined.formats], dtype=object)
        for value in sorted(set(values))[:-1]:  # the last follows from the others
            traits[f"{field} {value}"] = np.where(readable, values[examined.format_of[files]] == value, np.nan)
    return traits


def _list_rows(rows: Rows, results: Sequence[Finding], every: Sequence[Split]) -> pd.DataFrame:
    """Return one line for each row and finding, faults first."""
    paths = np.concatenate([split.table["Path"].to_numpy(dtype=object) for split in every])
    sources = np.array(rows.sources, dtype=object)
    parts = [
        pd.DataFrame({
            "split": sources[rows.source[finding.rows]], "row": rows.number[finding.rows],
            "severity": finding.severity, "fault": finding.kind,
            "detail": [" ".join(detail.split()) for detail in finding.details], "Path": paths[finding.rows],
        })
        for finding in sorted(results, key=lambda one: one.severity != "fault")
    ]  # fmt: skip
    return pd.concat([part for part in parts if len(part)] or parts[:1])
