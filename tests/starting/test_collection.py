"""What is kept of a source, its patients and splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.errors import ManifestError
from medmoco.starting.collection import Collection, collect
from medmoco.starting.machine import Machine
from medmoco.starting.sources import read_source
from tests.helpers.collections import write_image, write_images
from tests.helpers.dicom_files import RAMP12, save_dicom

MACHINE = Machine(2, 16 * 10**9, (), 10**9, has_amx=False)


def _collect(source: Path, patient: str | None = None) -> Collection:
    return collect(read_source(source, None, None), MACHINE, patient, 0, lambda _: None)


def test_collect__dicom_headers_become_columns_and_frames_become_rows(tmp_path: Path) -> None:
    save_dicom(tmp_path / "IM1", RAMP12, PatientID="7", ViewPosition="PA", Modality="CR", StudyInstanceUID="1.2")
    save_dicom(tmp_path / "IM2", RAMP12.reshape(4, 16, 64), NumberOfFrames=4, PatientID="8", Modality="US")
    (tmp_path / "IM3").write_bytes((tmp_path / "IM1").read_bytes()[:3000])
    write_image(tmp_path / "film.png", 0)
    (tmp_path / "notes.txt").touch()
    found = _collect(tmp_path)
    assert found.table["PatientID"].tolist() == ["7", "8", "8", "8", "8", ""]
    assert found.table["Frame"].tolist() == ["1", "1", "2", "3", "4", "1"]
    assert found.table["ViewPosition"].tolist() == ["PA", "", "", "", "", ""]
    assert found.left_out["Path"].tolist() == ["IM3"]
    assert "damaged or truncated" in found.left_out["Reason"].iloc[0]
    assert (found.ignored, found.is_decoded, set(found.splits)) == (1, True, {"train"})
    assert found.notes == ("one image has no PatientID: each such study, or else file, counts as a patient.",)


def test_collect__splits_by_patient_and_balances_labels(tmp_path: Path) -> None:
    names = [f"{'AB'[n % 2]}/p{n // 4}_{n}.png" for n in range(80)]
    found = _collect(write_images(tmp_path, names), patient=r"p(\d+)_")
    assert found.table["PatientID"].nunique() == 20
    assert (found.splits.groupby(found.table["PatientID"]).nunique() == 1).all()
    assert found.splits.value_counts().to_dict() == {"train": 56, "test": 16, "val": 8}
    assert found.notes == ()


def test_collect__official_splits_stay_and_shared_patients_are_reported(tmp_path: Path) -> None:
    names = [f"{split}/{kind}/p{n}_{kind}.png" for split in ("train", "val", "test") for kind in "AB" for n in range(4)]
    found = _collect(write_images(tmp_path, names), patient=r"p(\d+)_")
    assert found.splits.tolist() == [path.split("/")[0] for path in found.table["Path"]]
    assert found.notes[0].startswith("4 patients are in two splits")


def test_collect__without_labels_everything_is_for_training(tmp_path: Path) -> None:
    found = _collect(write_images(tmp_path, [f"{n}.png" for n in range(12)]))
    assert set(found.splits) == {"train"}
    assert "nothing identifies the patients" in found.notes[0]


def test_collect__suggests_a_pattern_for_patients(tmp_path: Path) -> None:
    found = _collect(write_images(tmp_path, [f"person{n // 2}_virus_{n}.png" for n in range(40)]))
    assert "suggest 20 patients" in found.notes[0]
    assert "--patient '" in found.notes[0]


def test_collect__without_validation_images_labels_are_not_used(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{n}.png" for n in range(4)])
    (tmp_path / "train.csv").write_text("Path,Sick\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    found = _collect(tmp_path)
    assert found.labels == ()
    assert found.notes[0].startswith("there is no validation split")


def test_collect__folders_of_one_patient_each_are_no_labels(tmp_path: Path) -> None:
    for name in "ABCDEFGHIJKL":
        (tmp_path / name).mkdir()
        for number in range(2):
            save_dicom(tmp_path / name / f"{number}.dcm", RAMP12 // (number + 1), PatientID=name)
    found = _collect(tmp_path)
    assert (found.labels, set(found.splits)) == ((), {"train"})


def test_collect__too_few_patients_are_not_split(tmp_path: Path) -> None:
    names = [f"{kind}/p{n % 3}_{n}.png" for kind in "AB" for n in range(12)]
    found = _collect(write_images(tmp_path, names), patient=r"p(\d)")
    assert (set(found.splits), found.labels) == ({"train"}, ())
    assert found.notes[0].startswith("3 patients are too few for a validation and a test split")


def test_collect__draws_validation_images_that_the_source_lacks(tmp_path: Path) -> None:
    names = [f"{split}/{kind}/{n}.png" for split in ("train", "test") for kind in "AB" for n in range(12)]
    found = _collect(write_images(tmp_path, names))
    assert found.splits.value_counts().to_dict() == {"test": 24, "train": 21, "val": 3}


def test_collect__finds_duplicates_once_per_file(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert _collect(tmp_path).duplicates == [[0, 2]]


def test_collect__counts_links_that_leave_the_source(tmp_path: Path) -> None:
    write_images(tmp_path / "store", ["a.png", "b.png"])
    (tmp_path / "mine").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "store" / name)
    assert _collect(tmp_path / "mine").links == 2


def test_collect__the_typical_size_is_that_of_an_image(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(40, 80), (80, 40), (50, 100), (10, 10), (400, 100)]):
        write_image(tmp_path / f"{number}.png", number, height=height, width=width)
    assert _collect(tmp_path).typical_size in {(80, 40), (40, 80), (100, 50)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "none of the 1 files is an image"),
        ("cut.png", "none of the 1 images can be used; for 1 the reason"),
    ],
)
def test_collect__without_images_refuses(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" if name == "cut.png" else b"text")
    with pytest.raises(ManifestError, match=message):
        _collect(tmp_path)


def test_collect__a_manifest_of_which_no_image_can_be_read_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "train.csv").write_text("Path\n0.png\n1.png\n2.png\n")
    with pytest.raises(ManifestError, match=r"none of the 3 images can be used; for 3 the reason is:\n.*damaged"):
        _collect(tmp_path)
