import builtins
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from medmoco.datasets.phantoms.phantom import phantom
from medmoco.datasets.phantoms.thorax import draw_person
from medmoco.datasets.phantoms.volumes import COLUMNS, STORED, Series, write_nifti, write_series
from medmoco.errors import SettingsError

SPLITS = ("train", "val", "test")
AFFINE = np.array([[3.5, 0, 0, -150.2], [0, 3.5, 0, -170.4], [0, 0, 4.0, -620.1], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-1024, 3071, (12, 14, 9), dtype=np.int16, endpoint=True)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("volumes") / "new"
    counts = phantom(out, volumes=True, patients=6, image_size=32, seed=5)
    assert counts == {name: len(pd.read_csv(out / f"{name}.csv")) for name in SPLITS}
    return out


def series(kind: str = "int16", order: str = "mixed") -> Series:
    return Series(1, 2, kind, 4.0, 5.0, "soft", order, AFFINE)


def table(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(folder / f"{name}.csv").assign(Split=name) for name in SPLITS], ignore_index=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read(path: Path):
    sitk = pytest.importorskip("SimpleITK")
    if path.is_file():
        return sitk.ReadImage(str(path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))  # sorted by position
    return reader.Execute()


def at(image, voxel: tuple[int, int, int], affine: np.ndarray) -> int:
    """Return the value that SimpleITK, which counts in LPS, finds at a voxel of ours, which counts in RAS."""
    x, y, z = (affine @ (*voxel, 1))[:3]
    return int(image[image.TransformPhysicalPointToIndex((-x, -y, z))])


@pytest.mark.parametrize("kind", [*STORED, "nifti"])
@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_files__agree_when_read_by_simpleitk(tmp_path, values, kind, order):
    if kind == "nifti":
        path = tmp_path / "a.nii.gz"
        write_nifti(path, values, AFFINE)
    else:
        path = tmp_path / "a"
        write_series(path, values, draw_person(0, 1), "PHANTOM-0001", series(kind, order))
    image = read(path)
    assert image.GetSize() == values.shape
    assert image.GetSpacing() == pytest.approx((3.5, 3.5, 4.0), abs=1e-4)
    for voxel in [(0, 0, 0), (11, 0, 0), (0, 13, 0), (0, 0, 8), (5, 7, 3), (11, 13, 8)]:
        assert at(image, voxel, AFFINE) == values[voxel]


def test_write_nifti__is_ras_in_mm(tmp_path, values):
    nibabel = pytest.importorskip("nibabel")
    write_nifti(tmp_path / "a.nii.gz", values, AFFINE)
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.get_qform(), AFFINE, atol=1e-4)
    assert np.allclose(image.get_sform(), AFFINE, atol=1e-4)
    assert image.get_data_dtype() == np.int16
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("kind", STORED)
def test_write_series__header(tmp_path, values, kind):
    uid = write_series(tmp_path / "a", values, draw_person(0, 1), "PHANTOM-0001", series(kind))
    slices = [pydicom.dcmread(file) for file in sorted((tmp_path / "a").iterdir())]
    assert {ds.SeriesInstanceUID for ds in slices} == {uid}
    assert len({ds.SOPInstanceUID for ds in slices}) == len(slices) == 9
    assert sorted(ds.InstanceNumber for ds in slices) == list(range(1, 10))
    ds = slices[0]
    assert (ds.PixelRepresentation, ds.BitsStored, ds.RescaleIntercept) == STORED[kind]
    assert (ds.Modality, ds.PatientID, ds.StudyDate, ds.PatientPosition) == ("CT", "PHANTOM-0001", "", "HFS")
    assert (ds.SliceThickness, ds.SpacingBetweenSlices) == (5, 4)
    assert ds.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert all((ds.pixel_array + ds.RescaleIntercept).max() <= 3071 for ds in slices)


def test_write_series__orders(tmp_path, values):
    orders = {}
    for order in ("up", "down", "mixed"):
        write_series(tmp_path / order, values, draw_person(0, 1), "PHANTOM-0001", series(order=order))
        slices = [pydicom.dcmread(file) for file in sorted((tmp_path / order).iterdir())]
        orders[order] = [float(ds.ImagePositionPatient[2]) for ds in slices], [int(ds.InstanceNumber) for ds in slices]
    up, down, mixed = orders["up"], orders["down"], orders["mixed"]
    assert up == (sorted(up[0]), list(range(1, 10)))
    assert down == (up[0][::-1], up[1])
    assert mixed[0] not in (up[0], down[0])
    assert sorted(mixed[0]) == up[0]
    assert mixed[1] != up[1]


@pytest.mark.slow
def test_phantoms__workers_do_not_change_a_byte(tmp_path, phantoms):
    phantom(tmp_path / "again", volumes=True, patients=6, image_size=32, seed=5, workers=2)
    assert contents(tmp_path / "again") == contents(phantoms)


def test_phantoms__rows_and_splits(phantoms):
    rows = table(phantoms)
    assert list(rows.columns) == [*COLUMNS, "Split"]
    assert rows.groupby("Split")["PatientID"].nunique().to_dict() == {"train": 4, "val": 1, "test": 1}
    assert (rows.groupby("PatientID")["Split"].nunique() == 1).all()
    assert rows.groupby("PatientID").size().between(1, 4).all()
    assert rows.groupby("StudyID").size().max() == 2
    assert (rows.groupby("StudyID")[["Opacity", "Effusion"]].nunique() == 1).all(axis=None)
    assert (rows.groupby("PatientID")["Nodule"].nunique() == 1).all()
    assert rows["PatientID"].str.startswith("PHANTOM-").all()
    assert set(rows["Modality"]) == {"CT"}
    nifti = rows["Path"].str.endswith(".nii.gz")
    assert 0 < nifti.sum() < len(rows)
    assert (rows["SeriesInstanceUID"].isna() == nifti).all()
    for row in rows.itertuples():
        path = phantoms / row.Split / row.Path
        if path.is_dir():
            assert pydicom.dcmread(next(path.iterdir())).SeriesInstanceUID == row.SeriesInstanceUID


def test_phantoms__nodules_are_dense_where_the_table_says(phantoms):
    rows, nodules = table(phantoms), pd.read_csv(phantoms / "nodules.csv")
    assert len(nodules.drop_duplicates(["Split", "Path"])) == len(rows)  # those without a nodule are named too
    positive = rows[rows["Nodule"] == 1]
    listed = nodules.dropna()
    assert 0 < len(positive) < len(rows)
    assert set(listed["Path"]) == set(positive["Path"])
    assert listed["diameter_mm"].between(7, 33).all()
    for nodule in listed.itertuples():
        image = read(phantoms / nodule.Split / nodule.Path)
        point = (-nodule.x_mm, -nodule.y_mm, nodule.z_mm)
        here = image.TransformPhysicalPointToIndex(point)
        assert all(0 < index < size - 1 for index, size in zip(here, image.GetSize(), strict=True))
        near = [image[tuple(int(i) for i in np.add(here, step))] for step in np.ndindex(2, 2, 2)]
        assert max(near) > -850  # partial volume: voxels of 12 mm


def test_phantoms__need_nibabel_only_for_nifti(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name == "nibabel":
            raise ImportError
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SettingsError, match=r"pip install medmoco\[volumes\]"):
        phantom(tmp_path / "out", volumes=True, patients=3, image_size=32)
    assert not (tmp_path / "out").exists()
    assert phantom(tmp_path / "out", volumes=True, patients=3, image_size=32, formats=["dicom"])["train"] >= 1
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"formats": ["png"]}, "choose from dicom, nifti"), ({"image_size": 1024}, "at most 512 for volumes")],
)
def test_phantoms__bad_argument(tmp_path, change, words):
    with pytest.raises(SettingsError, match=words):
        phantom(tmp_path / "out", volumes=True, **{"patients": 3, **change})
    assert not (tmp_path / "out").exists()
