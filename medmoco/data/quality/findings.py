"""The checks of `medmoco check`: faults, duplicates and leakage among rows whose files have been read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.image_io.fingerprints import near_duplicates
from medmoco.data.manifest.file_checks import FOUND
from medmoco.data.manifest.ids import DOUBTS, doubts
from medmoco.data.manifest.manifest import SPLITS, Split
from medmoco.data.manifest.overlap import image_keys, patient_ids, study_ids
from medmoco.data.quality.duplicates import Groups
from medmoco.data.quality.examine import FILE_FAULTS, Examined, Images
from medmoco.data.quality.shapes import ELONGATED, elongation
from medmoco.data.quality.volumes import VOLUME_FAULTS

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

_MERGE = "'medmoco split --merge-duplicates' with this folder keeps them in one split"


@dataclass(frozen=True)
class Rows:
    """R rows: those of train, val and test, followed by those of other pretraining data.

    Codes are equal for equal patients or studies, and -1 if there is none.
    """

    sources: tuple[str, ...]
    source: Codes  # (R,) int64, positions in `sources`
    number: Codes  # (R,) int64, row number in the manifest file
    file: Codes  # (R,) int64, position among the distinct files (and frames)
    patient: Codes  # (R,) int64, codes
    study: Codes  # (R,) int64, codes
    own: Mask  # (R,) bool, false for rows of other pretraining data
    dimensions: int = 2  # 3 for rows of volumes

    @property
    def noun(self) -> str:
        """What a row lists."""
        return "volume" if self.dimensions == 3 else "image"

    @property
    def held_out(self) -> Mask:
        """(R,) bool, whether the row is in val or test."""
        return self.own & np.isin(np.array(self.sources)[self.source], SPLITS[1:])

    def name(self, at: int) -> str:
        """Return a row's split and number, such as "train row 17"."""
        return f"{self.sources[self.source[at]]} row {self.number[at]}"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    severity: Literal["fault", "warning"]  # `check` exits with code 3 if there are faults
    kind: str  # a short description, the same for every finding of the kind
    rows: Codes  # (M,) int64, positions of the affected rows
    details: Sequence[str]  # M texts for the list of bad rows, without IDs or paths
    remark: str = ""  # additional information for the report


@dataclass(frozen=True)
class Shortcut:
    """How well a label is predicted by a trait other than image content."""

    label: str
    trait: str  # name of the trait, such as "width / height"
    auroc: float  # AUROC of the trait as a score, with the sign chosen to make it at least 0.5
    low: float  # lower bound of its 95 % interval
    high: float  # upper bound of its 95 % interval
    on_test: float | None  # AUROC on the test split alone, with the same sign; None if it is undefined
    chance: float = 0.5  # the highest AUROC to expect by chance among all traits and labels that were tested
    about: str = ""  # what the trait belongs to, such as Path
    remedy: str = ""  # how to evaluate without it

    @property
    def warns(self) -> bool:
        """Whether the shortcut is strong enough for a warning. Source: docs/check.md."""
        return self.low >= 0.6 and self.auroc >= self.chance


@dataclass(frozen=True)
class Provenance:
    """How well labels are predicted by what says where an image comes from."""

    shortcuts: Sequence[Shortcut] = ()  # one for each label and trait, strongest first
    tested: Sequence[str] = ()  # what was tested, such as Path and PatientID
    notes: Sequence[str] = ()  # what was not, and why


def gather_rows(splits: Sequence[Split], others: Sequence[Split], dimensions: int = 2) -> tuple[Rows, Images]:
    """Return the rows of all splits with codes, and the distinct images or volumes."""
    every = [*splits, *others]
    sizes = [len(split) for split in every]
    keys = pd.concat([image_keys(split) for split in every])
    file, distinct = pd.factorize(keys)
    first = np.full(len(distinct), -1)
    first[file[::-1]] = np.arange(len(file))[::-1]
    rows = Rows(
        sources=tuple(split.name for split in every),
        source=np.repeat(np.arange(len(every)), sizes),
        number=np.concatenate([split.rows for split in every]),
        file=file.astype(np.int64),
        patient=_codes([patient_ids(split) for split in every], sizes),
        study=_codes([study_ids(split) for split in every], sizes),
        own=np.repeat(np.arange(len(every)) < len(splits), sizes),
        dimensions=dimensions,
    )
    images = Images(
        files=np.concatenate([split.files for split in every])[first],
        frames=np.concatenate([split.frames for split in every])[first],
        series=np.concatenate([np.array(split.series, dtype=object) for split in every])[first],
    )
    return rows, images


def _codes(columns: Sequence[pd.Series[str] | None], sizes: Sequence[int]) -> Codes:
    texts = pd.concat([_or_blank(column, size) for column, size in zip(columns, sizes, strict=True)])
    codes = pd.factorize(texts)[0].astype(np.int64)
    return np.where((texts == "").to_numpy(), -1, codes)


def _or_blank(column: pd.Series[str] | None, size: int) -> pd.Series[str]:
    return pd.Series([""] * size, dtype=object) if column is None else column


# Single files


def unreadable(rows: Rows, files: Examined) -> Iterator[Finding]:
    """Report unreadable files by kind; in other pretraining data they are only warnings."""
    by_kind: dict[str, dict[int, str]] = {kind: {} for kind in FILE_FAULTS}
    if rows.dimensions == 3:
        by_kind |= {kind: {} for kind in VOLUME_FAULTS}
    for (at, kind), text in files.faults.items():
        by_kind.setdefault(kind, {})[at] = text
    for kind, texts in by_kind.items():
        bad = np.flatnonzero(rows.own & np.isin(rows.file, list(texts)))
        details = [texts[rows.file[at]] for at in bad]
        hints = (
            f"{rows.name(int(at))}: {text.split('; ')[1]}"
            for at, text in zip(bad, details, strict=True)
            if FOUND in text
        )
        yield Finding("fault", kind, bad, details, next(hints, ""))
    if not rows.own.all():
        any_text = {at: text for (at, _), text in files.faults.items()}
        bad = np.flatnonzero(~rows.own & np.isin(rows.file, list(any_text)))
        details = [any_text[rows.file[at]] for at in bad]
        yield Finding("warning", f"no {rows.noun} in pretraining data", bad, details)


def odd_images(rows: Rows, files: Examined, canvas_size: int) -> Iterator[Finding]:
    """Report images that are constant or small, or on which the reader remarked."""
    yield constant(rows, files)
    small = np.flatnonzero(rows.own & files.readable[rows.file] & (files.sizes.max(axis=1) < canvas_size)[rows.file])
    sizes = [f"{height} x {width} pixels" for height, width in files.sizes[rows.file[small]]]
    yield Finding("warning", "smaller than the canvas", small, sizes, f"data.canvas_size {canvas_size}")
    yield from noticed(rows, files)


def constant(rows: Rows, files: Examined) -> Finding:
    """Report images or volumes whose pixels or voxels are all equal."""
    at = np.flatnonzero(rows.own & files.constant[rows.file])
    what = "voxels" if rows.dimensions == 3 else "pixels"
    return Finding("warning", f"constant {rows.noun}", at, [f"all {what} have the same value"] * len(at))


def noticed(rows: Rows, files: Examined) -> Iterator[Finding]:
    """Report images or volumes on which the reader remarked, by the start of the remark."""
    by_kind: dict[str, list[str]] = {}
    for notice in sorted(files.notices):
        by_kind.setdefault(re.split("[:;]", notice)[0], []).append(notice)
    for kind, notices in by_kind.items():
        which = np.full(len(files.constant), -1)
        for number, notice in enumerate(notices):
            which[files.notices[notice]] = number
        affected = np.flatnonzero(rows.own & (which >= 0)[rows.file])
        yield Finding("warning", kind, affected, [notices[number] for number in which[rows.file[affected]]])


def elongated(rows: Rows, files: Examined, settings: RunSettings) -> Finding:
    """Report elongated images if most are, and the canvas keeps too little of their shorter side."""
    known = np.flatnonzero(rows.own & files.readable[rows.file])
    sizes = files.sizes[rows.file[known]]
    remark = elongation(sizes, settings)
    at = known[sizes.max(axis=1) > ELONGATED * sizes.min(axis=1)] if remark else known[:0]
    details = [f"{height} x {width} pixels" for height, width in files.sizes[rows.file[at]]]
    return Finding("warning", "elongated", at, details, remark)


def mixed_formats(rows: Rows, files: Examined) -> Iterator[Finding]:
    """Report rows whose files store pixels in another format than the majority."""
    yield minority(rows, files, "bit depth", "bits")
    yield minority(rows, files, "photometric interpretation", "photometric")


def minority(rows: Rows, files: Examined, what: str, field: str) -> Finding:
    """Report rows whose files have another value of a field of their format than most; blank values are unknown."""
    readable = np.flatnonzero(rows.own & files.readable[rows.file])
    names = [str(getattr(file_format, field)) for file_format in files.formats]
    values = np.array(names, dtype=object)[files.format_of[rows.file[readable]]]
    readable, values = readable[values != ""], values[values != ""]
    counts = Counter(values.tolist()).most_common()
    others = readable[values != counts[0][0]] if counts else readable
    remark = ", ".join(f"{name}: {count:,}" for name, count in counts[:4]) + (", ..." if len(counts) > 4 else "")
    details = [f"{names[files.format_of[rows.file[at]]]}, most have {counts[0][0]}" for at in others]
    return Finding("warning", f"mixed {what}", others, details, remark)


# Rows that share something


def in_two_splits(rows: Rows, pixels: Codes) -> Iterator[Finding]:
    """Report patients, studies, files and pixels that are in two splits, by their row in the later split.

    Of volumes, they are called volumes (files or series) and voxels.
    """
    for kind, codes in _shareable(rows, pixels).items():
        if kind in ("patient", "study") and (codes[rows.own] < 0).all():
            continue  # the check does not apply, so it must not be listed as passed
        first = _first_with(codes, rows.own)
        later = np.flatnonzero(rows.own & (first >= 0))
        later = later[rows.source[first[later]] != rows.source[later]]
        later = _in_other_files(rows, later, first) if codes is pixels else later
        yield _shared(rows, f"{kind} in two splits", kind, codes, later, first)


def in_pretraining(rows: Rows, pixels: Codes, same_root: Sequence[bool]) -> Iterator[Finding]:
    """Report rows of val and test whose patient, file or pixels are in other pretraining data.

    If two data sets share nothing but IDs, the IDs may agree by chance. `same_root` states for each of the other data
    sets whether its files are below the same root.
    """
    for source, is_same in enumerate(same_root, len(rows.sources) - len(same_root)):
        shareable = _shareable(rows, pixels)
        for kind in [kind for kind in ("file", "volume", "pixels", "voxels", "patient") if kind in shareable]:
            codes = shareable[kind]
            if kind == "patient" and any((codes[side] < 0).all() for side in (rows.own, rows.source == source)):
                continue
            first = _first_with(codes, rows.source == source)
            at = np.flatnonzero(rows.held_out & (first >= 0))
            at = _in_other_files(rows, at, first) if codes is pixels else at
            finding = _shared(rows, f"{kind} in {rows.sources[source]} data", kind, codes, at, first)
            if kind != "patient":
                is_same = is_same or bool((first[rows.own] >= 0).any())
            elif at.size and not is_same:
                remark = f"{finding.remark}; only the IDs agree, perhaps by chance"
                finding = replace(finding, severity="warning", remark=remark)
            yield finding


def doubtful_ids(rows: Rows, every: Sequence[Split]) -> Iterator[Finding]:
    """Report patient IDs that probably split one patient into two or merge several, anywhere in the data."""
    ids = pd.concat([_or_blank(patient_ids(split), len(split)) for split in every], ignore_index=True)
    if (rows.patient >= 0).any():
        kinds = doubts(ids)
        for kind, description in DOUBTS.items():
            at = np.flatnonzero(kinds == kind)
            yield Finding("warning", f"patient {kind}", at, [f"a PatientID {description}"] * len(at))


def same_pixels(rows: Rows, pixels: Codes) -> Finding:
    """Report files whose pixels equal those of another file of the same split."""
    first = _first_with(pixels, rows.own)
    later = np.flatnonzero(rows.own & (first >= 0) & (first != np.arange(len(first))))
    later = _in_other_files(rows, later[rows.source[first[later]] == rows.source[later]], first)
    what = "voxels" if rows.dimensions == 3 else "pixels"
    return replace(_shared(rows, f"same {what} twice", what, pixels, later, first), severity="warning")


def nearly_same(rows: Rows, files: Examined, pixels: Codes, groups: Groups) -> Iterator[Finding]:
    """Report near duplicates: within the splits by the later row, and rows of val and test in pretraining data.

    Near duplicates within the splits are joined in `groups`. Volumes of one patient are not reported: reconstructions
    of the same scan are nearly the same.
    """
    usable = np.flatnonzero(pixels >= 0)
    representative = usable[np.unique(pixels[usable], return_index=True)[1]]  # the first row of each distinct image
    nothing = len(rows.file)
    partner, elsewhere = np.full((2, nothing), nothing)
    for pairs in near_duplicates(files.patterns, rows.file[representative]):
        one, other = np.sort(representative[pairs], axis=1).T
        if rows.dimensions == 3:
            differ = (rows.patient[one] != rows.patient[other]) | (rows.patient[one] < 0)
            one, other = one[differ], other[differ]
        own = rows.own[other]  # other is the later one, and own rows come first
        np.minimum.at(partner, other[own], one[own])
        groups.join(other[own], one[own])
        mixed = rows.held_out[one] & ~own
        np.minimum.at(elsewhere, one[mixed], other[mixed])
    alike = np.flatnonzero(partner < nothing)
    across = rows.source[partner[alike]] != rows.source[alike]
    kinds = [("near duplicate in two splits", alike[across], partner), ("near duplicate", alike[~across], partner)]
    if not rows.own.all():
        kinds.append(("near duplicate in pretraining data", np.flatnonzero(elsewhere < nothing), elsewhere))
    for kind, at, partners in kinds:
        details = [f"nearly the same as {rows.name(one)}" for one in partners[at]]
        yield Finding("warning", kind, at, details, _MERGE if kind.endswith("two splits") else "")


def pixel_codes(rows: Rows, files: Examined) -> Codes:
    """Return (R,) codes of equal pixels; -1 for unreadable files and for constant images, which are all alike."""
    codes = np.unique(files.digests.view("V32").ravel(), return_inverse=True)[1].ravel().astype(np.int64)
    return np.where(files.readable & ~files.constant, codes, -1)[rows.file]


def _in_other_files(rows: Rows, at: Codes, first: Codes) -> Codes:
    """Return the rows whose first match is a different file; the same file is reported separately."""
    others: Codes = at[rows.file[first[at]] != rows.file[at]]
    return others


def _shareable(rows: Rows, pixels: Codes) -> dict[str, Codes]:
    file, content = ("volume", "voxels") if rows.dimensions == 3 else ("file", "pixels")
    return {"patient": rows.patient, "study": rows.study, file: rows.file, content: pixels}


def _first_with(codes: Codes, among: Mask) -> Codes:
    """Return for each row the first row within the mask that has the same code; -1 if there is none."""
    usable = np.flatnonzero(among & (codes >= 0))
    first = np.full(codes.max(initial=-1) + 2, -1)  # code -1 indexes the last entry
    first[codes[usable][::-1]] = usable[::-1]
    return first[codes]


def _shared(rows: Rows, kind: str, what: str, codes: Codes, at: Codes, first: Codes) -> Finding:
    details = [f"same {what} as {rows.name(one)}" for one in first[at]]
    count = np.unique(codes[at]).size
    remarks = {"patient": f"{count:,} patients", "study": f"{count:,} studies"}
    if kind in ("pixels in two splits", "voxels in two splits"):
        remarks[what] = _MERGE
    remark = remarks.get(what, "") if count else ""
    return Finding("fault", kind, at, details, remark)
