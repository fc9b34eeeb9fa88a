"""Findings on volumes: made by hand, and the whole check on files with every fault planted."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import medmoco
from medmoco.config import RunSettings, load
from medmoco.data.image_io.fingerprints import CELLS
from medmoco.data.quality import audit as quality
from medmoco.data.quality.audit import audit
from medmoco.data.quality.examine import Examined
from medmoco.data.quality.findings import Rows
from medmoco.data.quality.volume_findings import describe_volumes, odd_spacings, small_canvases, traits
from medmoco.data.quality.volumes import VolumeFormat
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import DataError
from medmoco.evaluation.leakage.shortcuts import find_provenance, find_shortcuts
from tests.data.quality.test_findings import rows_of
from tests.helpers.volume_files import CORONAL, save_series
from tests.helpers.volume_packs import REAL, needs_real, write_nifti

CT, MR = VolumeFormat("DICOM series", "CT"), VolumeFormat("NIfTI", "")


def settings_of(folder: Path, *more: str) -> RunSettings:
    given = [f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder}", "data.dimensions=3"]
    return load(None, [*given, "data.window=percentiles", "views.recipe=mr", "views.size=16", "data.workers=1", *more])


def rows(sources: str, **codes: Any) -> Rows:
    plain = rows_of(sources, **codes)
    return Rows(plain.sources, plain.source, plain.number, plain.file, plain.patient, plain.study, plain.own, 3)


def examined(sizes: Sequence[Any], spacings: Sequence[Any], **changed: Any) -> Examined:
    count = len(sizes)
    plain = {
        "digests": np.arange(count * 32, dtype=np.uint8).reshape(count, 32),
        "patterns": np.zeros((count, CELLS**2), np.uint8),
        "sizes": np.array(sizes, np.int32),
        "constant": np.zeros(count, bool),
        "format_of": np.zeros(count, np.int16),
        "formats": [CT],
        "spacings": np.array(spacings, np.float64),
        "canvases": np.array(sizes, np.int32),
        "slice_axes": np.full(count, 2, np.int8),
    }
    return Examined(**{**plain, **changed})


def test_small_canvases__along_any_axis_of_what_is_cropped(tmp_path: Path) -> None:
    files = examined([(64, 64, 64)] * 4, [(1, 1, 1)] * 4, canvases=np.array(
        [(16, 16, 16), (15, 40, 9), (3, 3, 3), (9, 40, 40)], np.int32), format_of=np.array([0, 0, -1, 0]),
    )  # fmt: skip
    found = small_canvases(rows("ttvp"), files, settings_of(tmp_path, "data.spacing=[1,1,2.5]"))
    assert found.rows.tolist() == [1]
    assert found.details == ["15 x 40 x 9 voxels on the canvas, fewer than 16 along left-right and head-foot"]
    assert found.remark.startswith("views.size 16 at data.spacing [1, 1, 2.5]: ")


def test_odd_spacings__relative_to_the_median_of_train() -> None:
    spacings = [(1, 1, 3), (1, 1, 3), (1, 1, 3), (1, 3.1, 3), (1, 1, 0.9), (3, 1, 9), (9, 9, 9), (9, 9, 9)]
    files = examined([(9, 9, 9)] * 8, spacings, format_of=np.array([0] * 6 + [-1, 0]))
    found = odd_spacings(rows("tttvsssp"), files)
    assert found.rows.tolist() == [3, 4]
    assert found.details[0] == "1 x 3.1 x 3 mm, far from the median along front-back"
    assert found.remark.endswith("the median of train: 1 x 1 x 3 mm")
    nothing = odd_spacings(rows("t"), examined([(9, 9, 9)], [(1, 1, 1)], format_of=np.array([-1])))
    assert not len(nothing.rows)


def test_describe_volumes__ranges_and_a_recommendation() -> None:
    spacings = [(1, 1, 5), (1, 1, 5), (1, 1, 2), (2, 1, 5), (7, 7, 7)]
    formats = [MR, CT]
    files = examined([(8, 9, 10), (8, 9, 20), (8, 9, 30), (8, 9, 1000), (1, 1, 1)], spacings, formats=formats,
                     format_of=np.array([1, 1, 0, 1, -1]))  # fmt: skip
    assert list(describe_volumes(rows("tttvs"), files)) == [
        "volumes: 3 DICOM series, 1 NIfTI; modality: 3 CT, 1 not stated",
        "voxels: left-right 8, front-back 9, head-foot 10 to 1,000 (median 25)",
        "spacing: left-right 1 to 2 (median 1), front-back 1, head-foot 2 to 5 (median 5) mm",
        # nnU-Net's rule: the median of the thick axis is more than three times the next
        "recommended data.spacing: [1, 1, 2.6] (median of each axis in train; head-foot, where slices are thick, the"
        " 10th percentile); it resamples 4 of 4 volumes",
    ]
    files = examined([(8, 9, 10)] * 3, [(1.004, 1, 2), (1, 1, 2), (1, 1, 4)])
    assert [*describe_volumes(rows("ttt"), files)][-2:] == [
        "spacing: left-right 1, front-back 1, head-foot 2 to 4 (median 2) mm",
        "recommended data.spacing: [1, 1, 2] (median of each axis in train); it resamples 1 of 3 volumes",
    ]


def test_traits__of_rows_not_of_files() -> None:
    files = examined([(8, 9, 10), (5, 6, 7), (1, 1, 1)], [(1, 2, 3), (2, 2, 2), (1, 1, 1)],
                     slice_axes=np.array([2, 0, 0]), format_of=np.array([0, 0, -1]))  # fmt: skip
    found = traits(rows("ttvp", file=[1, 0, 2, 0]), files)
    assert found["slices"][:2].tolist() == [5, 10]
    assert found["front-back spacing"][:2].tolist() == [2, 2]
    assert found["head-foot extent"][:2].tolist() == [14, 30]
    assert found["slices along left-right"][:2].tolist() == [1, 0]
    assert all(len(values) == 3 and np.isnan(values[2]) for values in found.values())


# ---- the whole check ----


def body(seed: int, shape: tuple[int, int, int] = (18, 20, 22)) -> np.ndarray:
    """A smooth random body of values from 0 to about 1,000, dark around it."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    values = 500 + 400 * noise / np.abs(noise).max()
    inside = np.zeros(shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    return np.where(inside, values, 0).round().astype(np.uint16)


def series(folder: Path, seed: int, **options: Any) -> list[Path]:
    """A CT series of a body, so that the slices (K, H, W) of the file are Z, -Y, -X."""
    return save_series(folder, body(seed).transpose(2, 1, 0)[:, ::-1, ::-1], PixelSpacing=[1, 1], **options)


def write(folder: Path, split: str, cells: Sequence[str]) -> None:
    (folder / f"{split}.csv").write_text("\n".join(["Path,PatientID,SeriesInstanceUID", *cells]) + "\n")


def listed(report: Path) -> set[tuple[str, int, str, str]]:
    with (report / "rows.csv").open() as file:
        return {(line["split"], int(line["row"]), line["severity"], line["fault"]) for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound volumes of several formats, and each kind of fault among them."""
    folder = tmp_path_factory.mktemp("secret")
    for number in range(4):
        series(folder / f"sound{number}", number)
        write_nifti(folder / f"sound{number}.nii.gz", body(10 + number), (1, 1, 2.5))
    series(folder / "missing", 20)[5].unlink()
    series(folder / "double", 21)
    series(folder / "double", 21, names=[f"{k}-copy.dcm" for k in range(22)])
    series(folder / "tilted", 22, shifts=[(0, 0.3 * k, 0) for k in range(22)])
    series(folder / "uneven", 23, along=[2.5 * k + 0.9 * (k % 3 == 0) for k in range(22)])
    series(folder / "localiser", 24, ImageOrientationPatient=lambda k: [*CORONAL] if k == 3 else [1, 0, 0, 0, 1, 0])
    [file.unlink() for file in series(folder / "single", 25)[1:]]
    series(folder / "flat", 26, SeriesInstanceUID="2.1")
    series(folder / "flat", 27, SeriesInstanceUID="2.2", names=[f"{k}.ima" for k in range(22)])
    series(folder / "mr", 28, Modality="MR")
    image = nibabel.Nifti1Image(body(29), np.diag([1, 1, 2.5, 1]))
    image.set_sform(np.diag([1, 1, 2.5, 1]), code=1)
    image.set_qform(np.diag([-1, 1, 2.5, 1]), code=1)
    nibabel.save(image, folder / "conflict.nii")
    write_nifti(folder / "time.nii", np.stack([body(30)] * 2, -1))
    write_nifti(folder / "thick.nii", body(31), (1, 1, 9))
    (folder / "cut.nii.gz").write_bytes((folder / "sound0.nii.gz").read_bytes()[:-500])
    # A copy of another volume: converted, and in other units
    twin = read_volume(folder / "sound0")
    nibabel.save(nibabel.Nifti1Image(twin.values, twin.affine), folder / "twin.nii")
    write_nifti(folder / "rescaled.nii", 3 * body(10) + 11, (1, 1, 2.5))
    train = ["sound0,a,", "sound0.nii.gz,b,", "sound1,c,", "sound1.nii.gz,d,", "missing,e,", "double,f,", "tilted,g,"]
    train += ["uneven,h,", "localiser,i,", "single,j,", "flat,k,2.1", "flat,k,", "mr,l,", "conflict.nii,m,"]
    write(folder, "train", [*train, "time.nii,n,", "thick.nii,o,", "cut.nii.gz,p,", "gone,q,"])
    write(folder, "val", ["sound2,r,", "twin.nii,s,", "flat,t,2.2"])
    write(folder, "test", ["sound3,u,", "rescaled.nii,v,", "sound2.nii.gz,c,", "sound2,w,1.2.3", "flat,x,2.2"])
    return folder


PLANTED = {
    ("train", 6, "fault", "missing slices"),
    ("train", 7, "fault", "duplicate slices"),
    ("train", 8, "fault", "gantry tilt"),
    ("train", 9, "fault", "uneven spacing"),
    ("train", 10, "fault", "localiser"),
    ("train", 11, "fault", "single slice"),
    ("train", 13, "fault", "several series in a folder"),
    ("train", 14, "warning", "mixed modalities"),
    ("train", 15, "fault", "left and right in conflict"),
    ("train", 16, "fault", "several volumes in a file"),
    ("train", 17, "warning", "spacing outlier"),
    ("train", 18, "fault", "file damaged"),
    ("train", 19, "fault", "file missing"),
    ("val", 3, "fault", "voxels in two splits"),
    ("test", 3, "warning", "near duplicate in two splits"),
    ("test", 4, "fault", "patient in two splits"),
    ("test", 5, "fault", "voxels in two splits"),  # one row names the series, the other does not
    ("test", 6, "fault", "volume in two splits"),
}


def test_audit__finds_every_planted_fault_of_volumes_at_its_row(planted: Path, tmp_path: Path) -> None:
    report = audit(settings_of(planted), tmp_path / "report")
    assert listed(tmp_path / "report") == PLANTED
    assert "volumes: 9 DICOM series, 6 NIfTI; modality: 8 CT, 6 not stated, 1 MR\n" in report.text
    assert "recommended data.spacing: [1, 1, 2.5] (median of each axis in train)" in report.text
    assert not any(word in report.text for word in ("image", "pixel", "secret", "sound", "twin", "2.1,"))
    assert max(map(len, report.text.splitlines())) < 120
    with (tmp_path / "report/rows.csv").open() as file:
        details = {(line["split"], line["row"]): line["detail"] for line in csv.DictReader(file)}
    assert details["train", "6"].startswith("1 slices are missing: most gaps are 2.5 mm")
    assert details["val", "3"] == "same voxels as train row 2"
    assert details["test", "6"] == "same volume as val row 4"


def test_audit__volumes_whatever_the_workers_and_interruptions(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(settings_of(planted), tmp_path / "whole")
    audit(settings_of(planted, "data.workers=2"), tmp_path / "two")

    def fail(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(quality, "_find", fail)
        with pytest.raises(KeyboardInterrupt):
            audit(settings_of(planted), tmp_path / "again")
    os.utime(planted / "sound3/004.dcm", ns=(1, 2**62))  # as if a slice were replaced: its folder does not change
    said: list[str] = []
    audit(settings_of(planted), tmp_path / "again", log=said.append)
    assert said == ["16 of 25 volumes are already finished; their files have not changed since"]
    for name in ("report.txt", "rows.csv", "duplicates.csv"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert whole == (tmp_path / "two" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_audit__shortcuts_of_volumes(tmp_path: Path) -> None:
    lines = ["Path,PatientID,SeriesInstanceUID,Sick"]
    for number in range(24):
        sick = number % 2
        write_nifti(tmp_path / f"{number * 7 % 24}.nii", body(number), (1, 1, 3 if sick else 2.5))
        lines.append(f"{number * 7 % 24}.nii,{number},,{sick}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    settings = settings_of(tmp_path, "data.labels=[Sick]")
    report = audit(settings, tmp_path / "report", (), find_shortcuts, find_provenance)
    (shortcut,) = report.shortcuts
    assert (shortcut.trait, shortcut.auroc) in {("head-foot spacing", 1.0), ("head-foot extent", 1.0)}
    assert "image borders" not in report.text
    assert "mixed modalities" not in report.text  # no file states one


@pytest.mark.parametrize(
    ("row", "words"),
    [("missing,e,", "1 slices are missing"), ("single,j,", "a single slice"), ("flat,k,", "contains 2 DICOM series"),
     ("conflict.nii,m,", "disagree on left and right"), ("tilted,g,", "gantry tilt")],
)  # fmt: skip
def test_pretrain__refuses_what_check_reports(planted: Path, tmp_path: Path, row: str, words: str) -> None:
    write(tmp_path, "train", ["sound0,a,", "sound1,c,", row, "sound2,r,"])
    network = ["model.backbone=monai/resnet10_quarter", "method.queue_size=4", "method.embedding_dim=8"]
    training = ["train.global_batch_size=4", "train.epochs=1", f"out={tmp_path / 'run'}", "data.workers=0"]
    settings = settings_of(planted, *network, *training, f"data.manifest={tmp_path}")
    with pytest.raises(DataError, match=rf"(?s)train.csv row 4: .*{words}"):
        medmoco.pretrain(settings)


@needs_real
def test_audit__real_volumes(tmp_path: Path) -> None:
    """200 hippocampi of as many patients are sound and unlike each other."""
    folder = REAL / "hippocampus"
    settings = settings_of(folder, "data.workers=2", "views.size=24", f"out={tmp_path / 'run'}")
    report = audit(settings, tmp_path / "report")
    assert not any(len(finding.rows) for finding in report.findings)
    assert "volumes: 200 NIfTI; modality: 200 not stated" in report.text
    assert "recommended data.spacing: [1, 1, 1] (median of each axis in train); it resamples 0 of 200" in report.text


@needs_real
def test_audit__real_series(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path\nmr_series/HFS\nmr_series/HFDR\nct_series\n")
    settings = settings_of(REAL, f"data.manifest={tmp_path}", f"out={tmp_path / 'run'}")
    report = audit(settings, tmp_path / "report")
    assert not report.faults
    assert {(row, kind) for _, row, _, kind in listed(tmp_path / "report")} == {
        (4, "mixed modalities"), (4, "spacing outlier"),
    }  # fmt: skip
    assert "volumes: 3 DICOM series; modality: 2 MR, 1 CT" in report.text
