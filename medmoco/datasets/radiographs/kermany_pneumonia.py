"""Paediatric chest radiographs of Kermany et al. 2018: normal, bacterial or viral pneumonia.

A widely used course project calls these images "NIH"; they come from Guangzhou and are unrelated to NIH.
"""

from __future__ import annotations

import re

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(
    name="Paediatric pneumonia (Kermany et al. 2018)",
    url="https://data.mendeley.com/datasets/rscbjbr9sj (ChestXRay2017) or "
    "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
    licence="CC BY 4.0",
    images=5_856,
)
_TAIL = re.compile(r"(?:^|/)(train|val|test)/(NORMAL|PNEUMONIA)/([^/]+)$")
# File names differ between copies of the data set; equal numbers are one patient, whatever word precedes them.
_PATIENTS = [
    re.compile(r"(person\d+)_(?:bacteria|virus)_"),
    re.compile(r"(?:NORMAL2-)?(IM-\d+)-"),
    re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-"),
]


def prepare(source: Source) -> Prepared:
    """Read the file names, as there is no table."""
    found = {image: _TAIL.search(image) for image in source.images}
    matches = {image: match for image, match in found.items() if match}
    table = pd.DataFrame(
        {
            "Path": list(found),
            "PatientID": [_patient(image.rpartition("/")[2]) for image in found],
            "OfficialSplit": [matches[image][1] if image in matches else "" for image in found],
            "Pneumonia": [image in matches and matches[image][2] == "PNEUMONIA" for image in found],
            **{
                name: [bool(re.search(word, image.rpartition("/")[2].lower())) for image in found]
                for name, word in {"Bacterial": "bacteria", "Viral": "virus"}.items()
            },
        }
    )
    faults = pd.Series(["" if image in matches else "not in {train,val,test}/{NORMAL,PNEUMONIA}" for image in found])
    copies = pd.Series([match.groups() if match else image for image, match in found.items()]).duplicated()
    faults[copies] = "second copy of a file in the same split and class"
    return Prepared(
        table=table,
        labels=["Pneumonia", "Bacterial", "Viral"],
        faults=faults,
        scanned=True,
        notes=[
            "`PatientID` is the number in the file name; equal numbers are one patient, whatever word precedes them.",
            f"The column `OfficialSplit` holds the official split, in which {_shared(table[faults == ''])}; this split "
            "is by patient.",
            "`Bacterial` and `Viral` are 0 for normal images; to compare the two, evaluate with "
            '`evaluate.where="Pneumonia == 1"`.',
        ],
    )


def _patient(name: str) -> str:
    return next((match[1] for pattern in _PATIENTS if (match := pattern.match(name))), "")


def _shared(table: pd.DataFrame) -> str:
    named = table[table["PatientID"] != ""]
    several = int((named.groupby("PatientID")["OfficialSplit"].nunique() > 1).sum())
    return f"{several:,} patients are in more than one part"
