"""CheXpert: uncertain (-1) and blank cells kept apart, frontal and lateral images; the expert-read images are test."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import CHEXPERT_LABELS as LABELS
from medmoco.datasets.preparation import About, Prepared, run
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
            "The 234 images of the official `valid`, which three radiologists read, are test; val is 10 % of the "
            "patients of the official `train`, whose labels were mined from reports.",
            "-1 is the makers' uncertain, blank is what a report does not mention: choose per label what they count "
            "as, with `data.labels: {Edema: {uncertain: one, missing: zero}}`.",
            "`ViewPosition` is AP, PA, LL, RL or, where the source says no more than lateral, LATERAL. "
            "17 images that the source calls frontal are LL or RL.",
            "Paths start at the folder that holds `train` and `valid`.",
        ],
    )


if __name__ == "__main__":
    run(ABOUT, prepare)
