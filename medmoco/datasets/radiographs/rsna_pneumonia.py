"""RSNA pneumonia detection challenge 2018: one label, three classes, boxes."""

from __future__ import annotations

import json

import pandas as pd

from medmoco.datasets.preparation import BOXES, About, Prepared, add_header_columns, corners, join
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError
from medmoco.utils.tables import read_bytes

ABOUT = About(
    name="RSNA Pneumonia Detection Challenge (2018)",
    url="https://www.kaggle.com/competitions/rsna-pneumonia-detection-challenge/data",
    licence="free for research and other purposes with attribution, see the RSNA's terms",
    images=26_684,
)
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_HEADERS = {"PatientID": "patientId", "ViewPosition": "ViewPosition", "PatientSex": "Sex", "PatientAge": "Age"}


def prepare(source: Source) -> Prepared:
    """Read stage_2_train_labels.csv and, if they exist, classes, headers and the mapping to NIH's file names."""
    given = source.table("stage_2_train_labels.csv", columns=["patientId", "x", "y", "width", "height", "Target"])
    paths = "stage_2_train_images/" + given["patientId"] + ".dcm"
    positive = given["Target"].eq("1").groupby(given["patientId"], sort=False).any()
    rows = pd.DataFrame({"patientId": positive.index, "Pneumonia": positive.to_numpy()})
    rows["Path"] = "stage_2_train_images/" + rows["patientId"] + ".dcm"
    labels, notes = ["Pneumonia"], ["`Pneumonia` is the source's `Target`: an opacity that suggests pneumonia."]
    classes = source.table_if_there("stage_2_detailed_class_info.csv", columns=["patientId", "class"])
    if classes is not None:
        rows = join(rows, classes.drop_duplicates("patientId").rename(columns={"class": "Class"}), "patientId")
        rows["Normal"] = rows["Class"].eq("Normal")
        labels.append("Normal")
        notes.append(
            "`Class` holds the three classes of the source; `Normal` is 0 also for images with other abnormalities."
        )
    headers = source.table_if_there("kaggle_stage_2_train_images_dicom_headers.csv", columns=list(_HEADERS))
    if headers is not None:
        rows = join(rows, headers[list(_HEADERS)].rename(columns=_HEADERS), "patientId")
    else:
        rows = add_header_columns(rows, source)
    rows["PatientID"], note = _patients(rows["patientId"], source)
    places = corners(given, ("x", "y", "width", "height"))
    boxes = pd.DataFrame({"Path": paths, "Label": "Pneumonia", **places})[given["Target"] == "1"]
    return Prepared(
        table=rows.drop(columns="patientId"), labels=labels, boxes=boxes[BOXES], examined=True,
        notes=[*notes, note],
    )  # fmt: skip


def _patients(images: pd.Series[str], source: Source) -> tuple[pd.Series[str], str]:
    """Return NIH's patients if the mapping of the organisers exists; the source's `patientId` identifies images."""
    file = source.find_if_there(MAPPING)
    if not file:
        return images, (
            "The images come from NIH ChestX-ray14, but the source's `patientId` identifies an image, not a person: "
            f"without `{MAPPING}` (from the RSNA's page) next to the tables, a person may be in two splits."
        )
    try:
        known = {entry["subset_img_id"]: entry["img_id"][:8] for entry in json.loads(read_bytes(file))}
    except (ValueError, TypeError, KeyError):
        raise ManifestError(f"{file} is not the list of subset_img_id and img_id that the RSNA published") from None
    return images.map(known).fillna(images), "`PatientID` is that of NIH, from the mapping of the organisers."
