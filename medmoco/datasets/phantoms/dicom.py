"""What the DICOM files of all phantoms have in common."""

from __future__ import annotations

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from medmoco.datasets.phantoms.thorax import Person


def derived_uids(*names: str) -> list[UID]:
    """Return one UID for each prefix of the names: the first, the first two, and so on."""
    return [generate_uid(entropy_srcs=["".join(names[:depth])]) for depth in range(1, len(names) + 1)]


def common_header(person: Person, patient: str, study: int) -> Dataset:
    """Return the elements of patient, study and equipment, without dates, and the transfer syntax."""
    ds = Dataset()
    ds.PatientName, ds.PatientID = patient.replace("-", "^"), patient
    ds.PatientSex, ds.PatientAge, ds.PatientBirthDate = person.sex, f"{person.age:03d}Y", ""
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID = f"{patient}-{study}"
    ds.BodyPartExamined, ds.Laterality = "CHEST", ""
    ds.Manufacturer, ds.ImageComments = "medmoco phantom", "Synthetic image of no person; not for clinical use"
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
