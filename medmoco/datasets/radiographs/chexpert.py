"""CheXpert: frontal and lateral images, uncertain (-1) and blank labels kept apart; the expert-read images are test."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import CHEXPERT_LABELS as LABELS
from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(
    name="CheXpert",
    url="https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2",
    licence="Stanford University Dataset Research Use Agreement, non-commercial",
    images=223_414 + 234,
)
_COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]


def prepare(source: Source) -> Prepared:
    """Read train.csv and valid.csv."""
    parts = {name: source.table(f"{name}.csv", columns=_COLUMNS) for name in ("train", "valid")}
    rows = pd.concat([part.assign(OfficialSplit=name) for name, part in parts.items()])
    paths = rows["Path"].str.replace(r"^CheXpert[^/]*/", "", regex=True)
    ids = paths.str.extract(r"(patient\d+)/(study\d+)/").fillna("")
    lateral = (rows["Frontal/Lateral"] == "Lateral").map({True: "LATERAL", False: ""})
    table = pd.DataFrame(
        {
            "Path": paths,
            "PatientID": ids[0],
            "StudyID": ids[0] + "/" + ids[1],
            "ViewPosition": rows["AP/PA"].where(rows["AP/PA"] != "", lateral),
            "Sex": rows["Sex"],
            "Age": rows["Age"],
            "Frontal/Lateral": rows["Frontal/Lateral"],
            "OfficialSplit": rows["OfficialSplit"],
            **rows[LABELS],
        }
    )
    return Prepared(
        table=table,
        labels=LABELS,
        official=rows["OfficialSplit"].map({"train": "", "valid": "test"}),
        shares={"val": 0.1},
        notes=[
            "The 234 images of the official `valid`, read by three radiologists, are test; val is 10 % of the patients "
            "of the official `train`, whose labels were extracted from reports.",
            "-1 means uncertain, blank means not mentioned in the report. Choose how each label treats them, for "
            "example `data.labels: {Edema: {uncertain: one, missing: zero}}`.",
            "`ViewPosition` is AP, PA, LL or RL; LATERAL if the source only says lateral. 17 images that the source "
            "calls frontal are LL or RL.",
            "Paths are relative to the folder that holds `train` and `valid`.",
        ],
    )
