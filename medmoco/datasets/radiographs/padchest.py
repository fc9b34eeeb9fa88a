"""PadChest: a column for every label of the reports; images are 16-bit PNG files."""

from __future__ import annotations

import ast

import numpy as np
import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(
    name="PadChest",
    url="https://bimcv.cipf.es/bimcv-projects/padchest/",
    licence="PadChest Dataset Research Use Agreement",
    images=160_868,
)
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_COLUMNS = [
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
    "MethodLabel", "Labels",
]  # fmt: skip


def prepare(source: Source) -> Prepared:
    """Read the table; some of its cells span several lines."""
    rows = source.table(TABLE, columns=_COLUMNS)
    lists = rows["Labels"].map({text: _parse(text) for text in rows["Labels"].unique()})
    known = lists.map(len) > 0
    names = lists.explode().str.strip()  # many names also occur with a leading space
    names = names[names.notna() & (names != "")]
    codes, columns = pd.factorize(names, sort=True)
    cells = np.zeros((len(rows), len(columns)), np.int8)
    cells[rows.index.get_indexer(names.index), codes] = 1
    found = pd.DataFrame(cells, rows.index, columns).astype("Int8")
    excluded = (found.get("exclude") == 1) | (rows["Projection"] == "EXCLUDE")
    labels = [name for name in found.columns if name != "exclude"]
    found[~known] = pd.NA
    born = pd.to_numeric(rows["PatientBirth"], errors="coerce")
    age = pd.to_numeric(rows["StudyDate_DICOM"].str[:4], errors="coerce") - born
    table = pd.DataFrame(
        {
            "Path": rows["ImageDir"] + "/" + rows["ImageID"],
            "PatientID": rows["PatientID"],
            "StudyID": rows["StudyID"],
            "ViewPosition": rows["Projection"],
            "Sex": rows["PatientSex_DICOM"],
            "Age": age.map("{:.0f}".format),
            "MethodLabel": rows["MethodLabel"],
        }
    ).join(found[labels])
    return Prepared(
        table=table,
        labels=labels,
        faults=excluded.map({True: "marked for exclusion by the makers (label or projection)", False: ""}),
        notes=[
            "A label is 1 if it is in the list of the report, else 0; leading spaces in names are ignored. "
            f"{(~known).sum():,} rows have no list: all their labels are blank. A parent such as 'pneumonia' stays 0 "
            "if only its child 'atypical pneumonia' is in the list.",
            "`MethodLabel` states whether a physician or a network labelled the report.",
            "`Age` is the year of the study minus the year of birth. `ViewPosition` is the source's `Projection`.",
            "The images are 16-bit PNG files, which medmoco reads at full depth.",
        ],
    )


def _parse(text: str) -> list[str]:
    """Read a Python list of names; anything else has none."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
