"""COVID-19 image data collection (Cohen et al.): radiographs only, findings as a tree."""

from __future__ import annotations

import re

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source, check_columns

ABOUT = About(
    name="COVID-19 image data collection",
    url="https://github.com/ieee8023/covid-chestxray-dataset",
    licence="each image has its own, in the column License",
)
_COLUMNS = ["patientid", "sex", "age", "finding", "view", "filename", "license"]
_UNKNOWN = {"", "todo", "unknown"}


def prepare(source: Source) -> Prepared:
    """Read any version of metadata.csv."""
    rows = source.table("metadata.csv").rename(columns=str.lower)
    check_columns(rows, _COLUMNS, source.find("metadata.csv"))
    findings = rows["finding"].map(lambda text: [part.strip() for part in re.split(r",\s*", text)])
    known = ~findings.map(lambda paths: {path.lower() for path in paths} <= _UNKNOWN)
    nodes = {path.rsplit("/", depth)[0] for path in findings[known].explode() for depth in range(path.count("/") + 1)}
    tree = {path.rpartition("/")[2]: path for path in sorted(nodes) if path.lower() not in _UNKNOWN}
    view = rows["view"]
    modality = rows["modality"] if "modality" in rows else view.map(lambda text: "CT" if "CT" in text else "X-ray")
    folder = rows["folder"] if "folder" in rows else pd.Series("images", rows.index)
    table = pd.DataFrame(
        {
            "Path": folder + "/" + rows["filename"],
            "PatientID": rows["patientid"],
            "ViewPosition": view,
            "Sex": rows["sex"],
            "Age": rows["age"],
            "Finding": rows["finding"],
            "License": rows["license"],
            **{name: [_cell(path, paths) for paths in findings] for name, path in tree.items()},
        }
    )
    table.loc[~known, list(tree)] = ""
    return Prepared(
        table=table,
        labels=list(tree),
        faults=modality.map(lambda text: "" if text == "X-ray" else f"modality {text or 'blank'}, not a radiograph"),
        notes=[
            "Findings form a tree, as in Pneumonia/Viral/COVID-19: those above a finding are 1 too, those below it are "
            "blank (unknown), all others are 0. If the finding is unknown, all labels are blank.",
            "`ViewPosition` can also be L (lateral) or AP Supine.",
            "The images come from publications and many hospitals, and the source of an image predicts its class: a "
            "high score here means little.",
        ],
    )


def _cell(label: str, findings: list[str]) -> str:
    """Return the cell of a label for the findings of an image; all are paths in the tree."""
    if any(f"{finding}/".startswith(f"{label}/") for finding in findings):
        return "1"
    return "" if any(label.startswith(f"{finding}/") for finding in findings) else "0"
