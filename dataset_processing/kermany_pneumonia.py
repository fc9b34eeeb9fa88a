"""Paediatric chest X-rays of Kermany et al. 2018: pneumonia or not, bacterial or viral.

A widely used course project calls these images "NIH"; they are from Guangzhou and have nothing to do with NIH.
"""

from __future__ import annotations

import re

import pandas as pd

from medmoco.datasets.preparation import About, Prepared, run
from medmoco.datasets.source import Source

ABOUT = About(
    name="Paediatric pneumonia (Kermany et al. 2018)",
    url="https://data.mendeley.com/datasets/rscbjbr9sj (ChestXRay2017) or "
    "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
    licence="CC BY 4.0",
    images=5_856,
    source="folder with train, test and perhaps val, each with NORMAL and PNEUMONIA",
)
_TAIL = re.compile(r"(?:^|/)(train|val|test)/(NORMAL|PNEUMONIA)/([^/]+)$")
# Copies of the set differ in their names; a number is taken as one patient whatever word is around it.
_PATIENTS = [
    re.compile(r"(person\d+)_(?:bacteria|virus)_"),
    re.compile(r"(?:NORMAL2-)?(IM-\d+)-"),
    re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-"),
]


def prepare(source: Source) -> Prepared:
    """Read the names of the files; there is no table."""
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
    faults[copies] = "a second copy of a file in the same split and class"
    return Prepared(
        table=table,
        labels=["Pneumonia", "Bacterial", "Viral"],
        faults=faults,
        scanned=True,
        notes=[
            "`PatientID` is the number in the file name; equal numbers are one patient whatever word is before them.",
            f"The official split is the column `OfficialSplit`; {_shared(table[faults == ''])}. Ours is by patient.",
            "`Bacterial` and `Viral` are 0 for normal images; for one against the other, evaluate with "
            '`evaluate.where="Pneumonia == 1"`.',
        ],
    )


def _patient(name: str) -> str:
    return next((match[1] for pattern in _PATIENTS if (match := pattern.match(name))), "")


def _shared(table: pd.DataFrame) -> str:
    named = table[table["PatientID"] != ""]
    several = int((named.groupby("PatientID")["OfficialSplit"].nunique() > 1).sum())
    return f"{several:,} patients are in two of its parts"


if __name__ == "__main__":
    run(ABOUT, prepare)
