import pydicom

from medmoco.datasets.phantoms.dicom import common_header, derived_uids
from medmoco.datasets.phantoms.thorax import draw_person


def test_common_header__patient_without_dates():
    person = draw_person(0, 3)
    ds = common_header(person, "PHANTOM-0003", 2)
    assert (str(ds.PatientName), ds.PatientID, ds.StudyID) == ("PHANTOM^0003", "PHANTOM-0003", "PHANTOM-0003-2")
    assert (ds.PatientSex, ds.PatientAge) == (person.sex, f"{person.age:03d}Y")
    assert not [element.keyword for element in ds if element.VR in ("DA", "TM", "DT") and element.value]
    assert "Synthetic" in ds.ImageComments


def test_derived_uids__are_nested_and_valid():
    one, two = derived_uids("study", "/a"), derived_uids("study", "/b")
    assert one == derived_uids("study", "/a")
    assert one[0] == two[0] == derived_uids("study")[0]
    assert one[1] != two[1]
    assert all(pydicom.uid.UID(uid).is_valid for uid in (*one, *two))
