"""What column names mean: those of public tables, and those that only look alike."""

from __future__ import annotations

import pytest

from medmoco.data.manifest.columns import meaning, other_name

MEANT = {
    "PatientID": (
        "PatientID|Patient ID|patient_id|PatientId|PATIENT-ID| patient id |patientid|Patient|"
        "patients|Patient #|Patient's ID|patient number|Patient No.|patient_name|subject|"
        "Subject ID|subject_id|SubjectCode|participant_id|Pat.-Nr.|PatientenID|Patienten-Nummer|"
        "id_paciente|pid|PTID|USUBJID|MRN|empi_anon|anon_patient_id|patient_id_hash|"
        "deid patient id|person_id"
    ),
    "Path": (
        "path|Image Index|ImageID|image_id|filename|file_name|image_path|DicomPath|dicom_id|"
        "anon_dicom_path|Filename|img_path|filepath|cxr_path|image|file"
    ),
    "Split": "split|Set Id|set|subset|partition|data_split|splits",
    "StudyID": "study_id|StudyInstanceUID|Study ID|study|AccessionNumber|exam_id|acc_anon",
    "ViewPosition": "View Position|view_position|view|ViewPosition_DICOM|Projection|AP/PA",
    "Sex": "sex|Patient Gender|PatientSex_DICOM|gender",
    "Age": "age|Patient Age|PatientAge|age_years",
    "Laterality": "laterality|ImageLaterality|side",
    "Frame": "frame|frame_number|Page",
}

UNMEANT = (
    "Follow-up #|Pneumonia|PatientBirth|PatientOrientation|patient_outcome|patient weight|"
    "subjectivity|PT|PAT|pathology|case|id|Frames|NumberOfFrames|StudyDate_DICOM|"
    "study_description|Finding|viewer|stage|average|Label|No Finding|inpatient|"
    "outpatient id count|patient_split||#"
)


@pytest.mark.parametrize(
    ("column", "name"), [(column, name) for column, names in MEANT.items() for name in names.split("|")]
)
def test_meaning__names_of_the_field(column: str, name: str) -> None:
    found = meaning(name)
    assert found is not None
    assert found[0] == column


@pytest.mark.parametrize("name", UNMEANT.split("|"))
def test_meaning__of_other_columns_is_none(name: str) -> None:
    assert meaning(name) is None


def test_other_name__the_likeliest_that_is_not_a_label() -> None:
    assert other_name("PatientID", ["Path", "subject", "Patient Age", "Patient ID"]) == "Patient ID"
    assert other_name("PatientID", ["Path", "subject"], labels=["subject"]) is None
    assert other_name("Path", ["image_id", "filename", "dicom_path"]) == "dicom_path"
    assert other_name("subject_id", ["Path", "PatientID"]) == "PatientID"
    assert other_name("Pneumonia", ["pneumonia"]) is None
