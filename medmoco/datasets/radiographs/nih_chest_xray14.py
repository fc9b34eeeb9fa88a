"""NIH ChestX-ray14: the official test list, and a validation split by patient from the rest.

The test list alone decides: copies of `train_val_list.txt` lack the line 00001203_011.png.
"""

from __future__ import annotations

import io

import pandas as pd

from medmoco.datasets.preparation import About, Prepared, corners
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError
from medmoco.utils.tables import read_bytes

ABOUT = About(
    name="NIH ChestX-ray14",
    url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="free to use with attribution to the NIH Clinical Center",
    images=112_120,
)
FINDINGS = [
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
]  # fmt: skip
_COLUMNS = [
    "Image Index", "Finding Labels", "Follow-up #", "Patient Age", "Patient Gender", "View Position",
]  # fmt: skip
LABELS = [*FINDINGS, "No Finding"]


def prepare(source: Source) -> Prepared:
    """Read Data_Entry_2017(_v2020).csv, test_list.txt and, if it exists, BBox_List_2017.csv."""
    entries = source.table("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", columns=_COLUMNS)
    test = source.lines("test_list.txt")
    names = entries["Image Index"]
    found = entries["Finding Labels"].str.get_dummies("|")
    if unknown := sorted(set(found.columns) - set(LABELS)):
        raise ManifestError(f"Data_Entry_2017: the finding {unknown[0]!r} is not one of the 15 that were published")
    if not names.isin(test).any():
        raise ManifestError("test_list.txt: none of its files is in Data_Entry_2017; download both from the same place")
    patients = names.str[:8]
    table = pd.DataFrame(
        {
            "Path": "images/" + names,
            "PatientID": patients,
            "StudyID": patients + "-" + entries["Follow-up #"].str.zfill(3),
            "ViewPosition": entries["View Position"],
            "Sex": entries["Patient Gender"],
            "Age": entries["Patient Age"],
            **found.reindex(columns=LABELS, fill_value=0),
        }
    )
    return Prepared(
        table=table,
        labels=LABELS,
        official=names.isin(test).map({True: "test", False: ""}),
        shares={"val": 0.1},
        boxes=boxes(source),
        notes=[
            "The official test list is kept; val is 10 % of the remaining patients.",
            "The makers extracted the labels from reports: a finding that is not mentioned is 0; none is uncertain.",
            "`PatientID` is the first eight characters of the file name; `StudyID` adds the source's follow-up number, "
            "which can differ from the number in the file name.",
            "`Path` follows the official archives, which unpack into a single folder `images`. For the twelve folders "
            "of Kaggle's copy (`images_001/images` and so on), move the files into one `images` folder, or run "
            "`medmoco prepare nih_chest_xray14` on the folder that contains them, which finds the files where they "
            "are; the same seed gives the same splits.",
        ],
    )


def boxes(source: Source) -> pd.DataFrame | None:
    """Read the boxes by the position of their columns, as the name of the last one contains commas."""
    file = source.find_if_there("BBox_List_2017.csv")
    if not file:
        return None
    content, names = io.BytesIO(read_bytes(file)), ["name", "label", *"xywh"]
    given = pd.read_csv(content, header=None, skiprows=1, usecols=range(6), names=names, dtype=str).fillna("")
    named = {"Path": "images/" + given["name"], "Label": given["label"].replace("Infiltrate", "Infiltration")}
    return pd.DataFrame({**named, **corners(given, "xywh")}).round(3)
