"""MIMIC-CXR-JPG: the official split and the labels of the CheXpert labeller, uncertain and blank kept apart."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import CHEXPERT_LABELS as LABELS
from medmoco.datasets.preparation import About, Prepared, join
from medmoco.datasets.source import Source

ABOUT = About(
    name="MIMIC-CXR-JPG",
    url="https://physionet.org/content/mimic-cxr-jpg/",
    licence="PhysioNet Credentialed Health Data License",
    images=377_110,
)
_TABLES = {
    "split": ["dicom_id", "study_id", "subject_id", "split"],
    "metadata": ["dicom_id", "ViewPosition"],
    "chexpert": ["study_id", *LABELS],
}


def prepare(source: Source) -> Prepared:
    """Read the split, metadata and CheXpert label tables of version 2.0.0 or 2.1.0."""
    images, views, found = (
        source.table(f"mimic-cxr-2.0.0-{name}.csv", columns=columns)[columns] for name, columns in _TABLES.items()
    )
    rows = join(join(images, views, "dicom_id"), found, "study_id")
    subject, study = rows["subject_id"], rows["study_id"]
    table = pd.DataFrame(
        {
            "Path": "files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + rows["dicom_id"] + ".jpg",
            "PatientID": subject,
            "StudyID": study,
            "ViewPosition": rows["ViewPosition"],
            **rows[LABELS],
        }
    )
    return Prepared(
        table=table,
        labels=LABELS,
        official=rows["split"].map({"train": "train", "validate": "val", "test": "test"}),
        notes=[
            "The official split is kept; `validate` is val.",
            "Labels come from the CheXpert labeller, per study: -1 means uncertain, blank means not mentioned in the "
            "report. All labels of the few studies without a report are blank.",
            "Sex and age are not in this source but in MIMIC-IV.",
        ],
    )
