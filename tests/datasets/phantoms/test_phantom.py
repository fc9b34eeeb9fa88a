from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.pixels import apply_windowing

from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_image
from medmoco.data.manifest.manifest import load_manifest
from medmoco.datasets.phantoms.phantom import COLUMNS, expose, phantom, write_dicom, write_png
from medmoco.datasets.phantoms.thorax import Pose, build_thorax, draw_person, project_thorax
from medmoco.errors import SettingsError

EXAMPLE = Path(__file__).parents[3] / "manifests" / "phantom"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "new"
    counts = phantom(out, patients=20, image_size=48, seed=3)
    assert counts == {name: len(pd.read_csv(out / f"{name}.csv")) for name in SPLITS}
    return out


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    thorax = build_thorax(draw_person(0, 1), Pose())
    return expose(project_thorax(thorax, 96), np.random.default_rng(0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def table(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(folder / f"{name}.csv").assign(Split=name) for name in SPLITS], ignore_index=True)


def test_phantom__same_seed_same_bytes(tmp_path, phantoms):
    phantom(tmp_path / "again", patients=20, image_size=48, seed=3, workers=2)
    assert contents(tmp_path / "again") == contents(phantoms)


def test_phantom__masks_are_what_the_boxes_enclose(tmp_path, phantoms):
    phantom(tmp_path / "masks", patients=20, image_size=48, seed=3, masks=True)
    with_masks, without = contents(tmp_path / "masks"), contents(phantoms)
    assert {name: without[name] for name in without if not name.endswith(".csv")}.items() <= with_masks.items()
    boxes = pd.read_csv(tmp_path / "masks/boxes.csv")
    rows = table(tmp_path / "masks")
    assert rows["Opacity"].sum() > 5
    for split, path, mask, opacity in rows[["Split", "Path", "Mask", "Opacity"]].itertuples(index=False):
        shown = cv2.imread(str(tmp_path / "masks" / split / mask), cv2.IMREAD_UNCHANGED)
        assert shown.shape == (48, 48)
        assert set(np.unique(shown)) <= {0, 1}
        own = boxes[(boxes["Split"] == split) & (boxes["Path"] == path) & boxes["Label"].notna()]
        inside = np.zeros_like(shown)
        for x_min, y_min, x_max, y_max in own[["x_min", "y_min", "x_max", "y_max"]].astype(int).itertuples(index=False):
            part = shown[y_min:y_max, x_min:x_max]
            assert all(part.any(axis).all() or len(own) > 1 for axis in (0, 1))  # the box is tight
            inside[y_min:y_max, x_min:x_max] = 1
        assert not (shown > inside).any()
        assert shown.any() == (len(own) > 0)
        assert opacity or not shown.any()


def test_phantom__volumes_have_no_masks(tmp_path):
    with pytest.raises(SettingsError, match="only images have masks"):
        phantom(tmp_path / "ct", volumes=True, masks=True)


def test_phantom__other_seed_other_images(tmp_path, phantoms):
    phantom(tmp_path / "other", patients=3, image_size=48, seed=4)
    assert not set(contents(tmp_path / "other").values()) & set(contents(phantoms).values())


def test_phantom__patients_do_not_cross_splits(phantoms):
    rows = table(phantoms)
    assert list(rows.columns) == [*COLUMNS, "Split"]
    assert (rows.groupby("PatientID")["Split"].nunique() == 1).all()
    assert rows.groupby("Split")["PatientID"].nunique().to_dict() == {"train": 12, "val": 4, "test": 4}
    assert rows.groupby("PatientID").size().between(1, 4).all()
    assert (rows.groupby("StudyID")["Opacity"].nunique() == 1).all()
    assert (rows.groupby("PatientID")["Interstitial"].nunique() == 1).all()


def test_phantom__boxes_lie_in_images_with_opacities(phantoms):
    listed, rows = pd.read_csv(phantoms / "boxes.csv"), table(phantoms)
    assert len(listed.drop_duplicates(["Split", "Path"])) == len(rows)  # those without a box are named too
    boxes = listed.dropna()
    positive = rows[rows["Opacity"] == 1]
    assert 0 < len(positive) < len(rows)
    assert set(zip(boxes["Split"], boxes["Path"], strict=True)) <= set(
        zip(positive["Split"], positive["Path"], strict=True)
    )
    assert (boxes[["x_min", "y_min"]] >= 0).all(axis=None)
    assert (boxes["x_min"] < boxes["x_max"]).all()
    assert (boxes["y_min"] < boxes["y_max"]).all()
    assert (boxes[["x_max", "y_max"]] <= 48).all(axis=None)


def test_phantom__reads_back_as_a_manifest(phantoms):
    settings = DataSettings(
        manifest=phantoms, root=str(phantoms / "{split}"), labels={"Opacity": {}, "Interstitial": {}}
    )
    splits = load_manifest(settings)
    assert sum(len(split) for split in splits.values()) == len(table(phantoms))
    for file in splits["train"].files:
        image = read_image(file)
        assert image.pixels.shape == (48, 48)
        assert image.pixels[:4, :4].mean() < 0.5 * image.pixels.mean()  # air above the shoulder is dark


def test_phantom__formats(tmp_path, phantoms):
    kinds = {pydicom.dcmread(file).PhotometricInterpretation for file in phantoms.rglob("*.dcm")}
    depths = {cv2.imread(str(file), cv2.IMREAD_UNCHANGED).dtype for file in phantoms.rglob("*.png")}
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}
    assert depths == {np.dtype("uint8"), np.dtype("uint16")}
    phantom(tmp_path / "png", patients=3, image_size=32, formats=["png"])
    assert {file.suffix for file in (tmp_path / "png").rglob("*.*") if file.is_file()} == {".png", ".csv"}


def test_write_dicom__header(tmp_path, pixels):
    write_dicom(tmp_path / "a.dcm", pixels, "MONOCHROME2", draw_person(0, 1), Pose(), 1, 2)
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 12, 11, 0)
    assert (ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation) == (96, 96, 1, "MONOCHROME2")
    assert (str(ds.PatientName), ds.PatientID, ds.StudyDate) == ("PHANTOM^0001", "PHANTOM-0001", "")
    assert ds.WindowWidth > 500
    assert ds.pixel_array.max() <= 4095
    assert "Synthetic" in ds.ImageComments
    assert len({ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID}) == 3


def test_write_dicom__photometric_twins_agree(tmp_path, pixels):
    shown: dict[str, np.ndarray] = {}
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        file = tmp_path / f"{kind}.dcm"
        write_dicom(file, pixels, kind, draw_person(0, 1), Pose(), 1, 1)
        ds = pydicom.dcmread(file)
        stored = ds.pixel_array
        assert np.array_equal(4095 - stored if kind == "MONOCHROME1" else stored, pixels)
        windowed = apply_windowing(stored, ds)
        shown[kind] = 4095 - windowed if kind == "MONOCHROME1" else windowed
    assert np.allclose(shown["MONOCHROME1"], shown["MONOCHROME2"])
    ours = [read_image(tmp_path / f"{kind}.dcm").pixels.astype(int) for kind in shown]
    assert np.abs(ours[0] - ours[1]).max() <= 1


def test_write_png__shows_what_the_dicom_shows(tmp_path, pixels):
    write_dicom(tmp_path / "a.dcm", pixels, "MONOCHROME2", draw_person(0, 1), Pose(), 1, 1)
    write_png(tmp_path / "16.png", pixels, 16)
    write_png(tmp_path / "8.png", pixels, 8)
    images = [read_image(tmp_path / name) for name in ("a.dcm", "16.png", "8.png")]
    dicom, png16, png8 = (image.pixels / (2**image.bits - 1) for image in images)
    assert np.abs(dicom - png16).max() < 0.002
    assert np.abs(png8 - png16).max() <= 0.5 / 255 + 1e-6


def test_expose__noise_grows_with_attenuation():
    images = [
        expose(np.full((200, 200), attenuation), np.random.default_rng(1)).std() for attenuation in (1.0, 4.0, 6.0)
    ]
    assert images[0] < images[1] < images[2]


def test_expose__beer_lambert():
    image = expose(np.repeat([2.0, 3.0], 100)[None].repeat(200, axis=0), np.random.default_rng(1)).astype(float)
    step = (image[:, 150:].mean() - image[:, :50].mean()) / 4095 * 8
    assert 0.5 < step < 1.0  # one unit of attenuation, less what scatter veils


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patients": 2}, "patients=2"),
        ({"image_size": 8}, "image_size=8"),
        ({"seed": -1}, "seed=-1"),
        ({"formats": ["jpeg"]}, "choose from dicom, png"),
        ({"formats": []}, "choose from dicom, png"),
    ],
)
def test_phantom__bad_argument(tmp_path, change, words):
    with pytest.raises(SettingsError, match=words):
        phantom(tmp_path / "out", **{"patients": 3, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("occupy", [lambda out: out.write_text("x"), lambda out: (out / "sub").mkdir(parents=True)])
def test_phantom__refuses_what_is_not_an_empty_folder(tmp_path, occupy: Callable[[Path], None]):
    occupy(tmp_path / "out")
    with pytest.raises(SettingsError, match="not an empty folder"):
        phantom(tmp_path / "out", patients=3)


def test_example_manifest__is_what_the_generator_makes(tmp_path):
    phantom(tmp_path / "out", patients=10, image_size=32, seed=0)
    for name in SPLITS:
        assert (EXAMPLE / f"{name}.csv").read_bytes() == (tmp_path / "out" / f"{name}.csv").read_bytes()
