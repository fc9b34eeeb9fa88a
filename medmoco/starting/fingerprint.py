"""The fingerprint of a collection of images: one screen of text, without paths or patient IDs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from medmoco.data.image_io.intensity import CONSTANT, FIRST_OF_SEVERAL
from medmoco.data.manifest.ids import DOUBTS, doubts
from medmoco.data.manifest.manifest import SPLITS, names_patients
from medmoco.data.manifest.split_files import patient_ids
from medmoco.datasets.series import MODALITIES
from medmoco.starting.collection import Collection
from medmoco.starting.plan import WIDE

_LABELS, _REASONS, _KINDS = 8, 6, 5  # lines or values shown of each kind
_NAME = 12  # width of the first column
_WIDTH = 119


def describe(images: Collection) -> str:
    """Return the fingerprint."""
    return "\n".join([*_counts(images), "", *_files(images), *_left_out(images)])


def warnings_about(images: Collection, canvas: int) -> list[str]:
    """Return what the user should know about the images, a sentence or two each."""
    found = []
    width, height = images.typical_size
    ratio = max(width, height) / max(1, min(width, height))
    if ratio >= WIDE:
        squeezed = f"{ratio:.1f} times as {'wide as high' if width > height else 'high as wide'}"
        found.append(
            f"A typical image is {squeezed}. Its canvas of {canvas} x {round(canvas / ratio)} pixels keeps the"
            " proportions, but views are square, so whole images are squeezed in evaluation. Cut out the region that"
            " matters before training if there is one."
        )
    constant = images.sample.notices.get(CONSTANT, 0)
    if constant:
        found.append(f"{constant:,} of {images.sample.count:,} sampled images are a single gray level: remove them.")
    several = images.sample.notices.get(FIRST_OF_SEVERAL, 0)
    if several and "Frame" not in images.table:
        found.append("Some files have several pages; only the first is used. Add a Frame column to use the others.")
    if images.headers["Modality"].isin(MODALITIES).any():
        found.append(
            "Each slice of the CT, MR and PT series counts as an image. To use the series as volumes, write a manifest"
            " with `medmoco prepare dicom_tree --volumes`, and set data.dimensions to 3."
        )
    if names_patients(images.table):
        kinds = doubts(images.table["PatientID"])
        found += [
            f"{count:,} rows have a PatientID {text}."
            for kind, text in DOUBTS.items()
            if (count := int((kinds == kind).sum()))
        ]
    return found


def _counts(images: Collection) -> list[str]:
    """Return a table of images, patients and the share of each label by split."""
    present = [name for name in SPLITS if (images.splits == name).any()]
    rows: dict[str, list[str]] = {"images": [f"{(images.splits == name).sum():,}" for name in present]}
    if names_patients(images.table):
        patients, _ = patient_ids(images.table)
        rows["patients"] = [f"{patients[images.splits == name].nunique():,}" for name in present]
    for label in images.labels[:_LABELS]:
        rows[label] = [_prevalence(images.table.loc[images.splits == name, label]) for name in present]
    width = min(40, max(map(len, rows)))
    lines = [f"{'':{width}}" + "".join(f"{name:>9}" for name in present)]
    lines += [f"{textwrap.shorten(name, width, placeholder='...'):{width}}" + "".join(f"{cell:>9}" for cell in cells)
              for name, cells in rows.items()]  # fmt: skip
    if more := len(images.labels) - _LABELS:
        lines += [f"and {more} more labels"] * (more > 0)
    return lines


def _prevalence(cells: pd.Series[str]) -> str:
    values = pd.to_numeric(cells, errors="coerce")
    known = values.isin([0, 1])
    if not known.any():
        return "-"
    share = float((values == 1).sum() / known.sum())
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _files(images: Collection) -> list[str]:
    headers, sample = images.headers, images.sample
    depths = Counter(f"{bits} bit" for bits in headers["Bits"] if bits)
    lines = wrapped("format", f"{_counted(headers['Kind'])}; {_counts_of(depths)}; {_counted(headers['Photometric'])}")
    lines += wrapped("size", _sizes(headers))
    if (headers["Modality"] != "").any():
        lines += wrapped("modality", _counted(headers["Modality"].replace("", "not stated")))
    colour = "no image has colour" if not sample.coloured else f"{sample.coloured:,} images have colour"
    decoded = f"{sample.readable:,} images decoded, {1000 * sample.seconds:.2g} ms each; {colour}"
    lines += wrapped("pixels", decoded)
    return lines + wrapped("duplicates", _duplicates(images))


def _sizes(headers: pd.DataFrame) -> str:
    width, height = headers["Width"], headers["Height"]
    if width.nunique() == height.nunique() == 1:
        return f"all {width.iloc[0]:,} x {height.iloc[0]:,} pixels (width x height)"
    spans = [
        f"{name} {side.min():,}"
        if side.nunique() == 1
        else f"{name} {side.min():,} to {side.max():,} (median {side.median():,.0f})"
        for name, side in (("width", width), ("height", height))
    ]
    ratios = width.clip(lower=1) / height.clip(lower=1)
    low, middle, high = np.percentile(ratios, [0, 50, 100])
    ratio = f"{low:.2f} to {high:.2f} (median {middle:.2f})" if high - low > 0.01 else f"{middle:.2f}"
    return f"{', '.join(spans)} pixels; width / height {ratio}"


def _duplicates(images: Collection) -> str:
    if not images.duplicates:
        return "no two files are the same"
    again = sum(len(group) - 1 for group in images.duplicates)
    across = sum(images.splits.iloc[list(group)].nunique() > 1 for group in images.duplicates)
    text = f"{again:,} file{'s repeat' if again > 1 else ' repeats'} the content of another one"
    return f"{text}, {across:,} of them in another split" if across else text


def _left_out(images: Collection) -> list[str]:
    lines = []
    reasons = images.left_out["Reason"]
    if len(reasons):
        counts = reasons.str.split("\n").str[0].value_counts()
        shown = [f"{count:,} x {reason}" for reason, count in counts.head(_REASONS).items()]
        if len(counts) > _REASONS:
            shown.append(f"and {counts.iloc[_REASONS:].sum():,} for other reasons")
        lines += wrapped("left out", f"{len(reasons):,}, listed in left_out.csv")
        lines += [line for reason in shown for line in wrapped("", reason)]
    if images.ignored:
        what = "files that are not images" if images.ignored > 1 else "file that is not an image"
        lines += wrapped("ignored", f"{images.ignored:,} {what}")
    return lines


def wrapped(name: str, text: str) -> list[str]:
    """Return a text as lines, with its name in a column of its own."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{name:{_NAME}}", subsequent_indent=" " * _NAME, break_on_hyphens=False
    )


def _counted(cells: Iterable[str]) -> str:
    return _counts_of(Counter(cell for cell in cells if cell))


def _counts_of(counts: Mapping[str, int]) -> str:
    most = Counter(counts).most_common()
    if len(most) == 1:
        return most[0][0]
    more = sum(count for _, count in most[_KINDS:])
    return ", ".join(
        [*(f"{count:,} x {name}" for name, count in most[:_KINDS]), *([f"{more:,} others"] if more else [])]
    )
