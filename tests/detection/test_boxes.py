from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.datasets.preparation import BOXES
from medmoco.detection import boxes
from medmoco.detection.boxes import CORNERS, load_annotations
from medmoco.errors import ManifestError, SettingsError
from tests.helpers.rectangles import HEADER, SECRET, make_settings, read_boxes, write_boxes, write_images


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("rectangles") / "data")


@pytest.fixture
def manifest(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def load(manifest: Path, *overrides: str) -> Any:
    return load_annotations(make_settings(manifest, *overrides), ("train", "val"))


def test_corners__are_those_that_data_sets_are_prepared_with() -> None:
    assert BOXES[2:] == CORNERS


def test_load_annotations__boxes_of_each_image(manifest: Path) -> None:
    found = load(manifest)
    assert found.labels == ("Mass", "Nodule")
    train = found.splits["train"]
    assert len(train) == 12
    assert train.sizes.tolist() == [[48, 64]] * 12
    for position in range(12):
        rows = [row for row in read_boxes(manifest) if row[:2] == ["train", f"{SECRET}-{position}.png"] and row[2]]
        own = train.boxes_of(position)
        assert train.corners[own].tolist() == [[float(cell) for cell in row[3:]] for row in rows]
        assert [found.labels[code] for code in train.labels[own]] == [row[2] for row in rows]
    assert not found.notes


def test_load_annotations__unlisted_images_are_unknown_or_negative(manifest: Path) -> None:
    write_boxes(manifest, [row for row in read_boxes(manifest) if row[2]])
    found = load(manifest)
    assert (len(found.splits["train"]), len(found.splits["val"])) == (8, 5)
    assert "train: 4 of 12 images are excluded because they are not in the table of boxes" in found.notes[0]
    negative = load(manifest, "detection.unlisted=negative")
    assert (len(negative.splits["train"]), len(negative.splits["val"])) == (12, 8)
    assert len(negative.splits["train"].labels) == len(found.splits["train"].labels)
    assert not negative.notes


def test_load_annotations__labels_that_are_asked_for(manifest: Path) -> None:
    found = load(manifest, "detection.labels=[Nodule]")
    assert found.labels == ("Nodule",)
    assert len(found.splits["train"]) == 12  # an image with other boxes was examined too
    assert found.notes == [
        "train: 8 boxes with other labels are excluded",
        "val: 5 boxes with other labels are excluded",
    ]
    with pytest.raises(SettingsError, match="no box is labelled 'Nodul'; did you mean 'Nodule'"):
        load(manifest, "detection.labels=[Nodul]")


def test_load_annotations__clips_what_leads_out_by_less_than_a_pixel(manifest: Path) -> None:
    write_boxes(manifest, [*read_boxes(manifest), ["train", f"{SECRET}-0.png", "Mass", -0.4, 0, 64.9, 9]])
    found = load(manifest)
    assert found.notes == ["train: 1 boxes exceeded their image by less than a pixel and were clipped"]
    assert found.splits["train"].corners[0].tolist() == [0, 0, 64, 9]


def test_load_annotations__counts_what_is_there_twice_once(manifest: Path) -> None:
    rows = read_boxes(manifest)
    again = next(row for row in rows if row[2])
    write_boxes(manifest, [*rows, again])
    found = load(manifest)
    assert found.notes == ["train: 1 duplicate boxes are counted once"]


def test_load_annotations__readers(manifest: Path) -> None:
    rows = [[*row, "R1"] for row in read_boxes(manifest)]
    first = next(row for row in rows if row[2])
    write_boxes(manifest, [*rows, [*first[:-1], "R2"]], [*HEADER, "Reader"])
    found = load(manifest, "detection.labels=[Mass]")
    assert any("9 boxes by several readers were merged into 8 findings" in note for note in found.notes)


def test_load_annotations__val_must_have_boxes_to_choose_the_epoch_by(manifest: Path) -> None:
    write_boxes(manifest, [row for row in read_boxes(manifest) if row[0] == "train" or not row[2]])
    with pytest.raises(ManifestError, match="no image of val has a box"):
        load(manifest)


IMAGE = f"{SECRET}-0.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["train", IMAGE, "Mass", 5, 5, 4, 9], "x_max must be above x_min"),
        (["train", IMAGE, "Mass", 5, 5, 5, 9], "x_max must be above x_min"),
        (["train", IMAGE, "Mass", "nan", 5, 6, 9], "must be numbers"),
        (["train", IMAGE, "Mass", "1e999", 5, 6, 9], "must be numbers"),
        (["train", IMAGE, "Mass", "1,5", 5, 6, 9], "must be numbers.*it has a decimal comma"),
        (["train", IMAGE, "Mass", "", "", "", ""], "must be numbers"),
        (["train", IMAGE, "", 1, 1, "", 9], "must be numbers"),
        (["train", IMAGE, "", 1, 1, 5, 9], "no Label"),
        (["train", "elsewhere.png", "Mass", 1, 1, 5, 9], "no row of the manifest has its Path"),
        (["valid", IMAGE, "Mass", 1, 1, 5, 9], "Split must be train, val or test"),
        (["train", IMAGE, "Mass", 1, 1, 65, 9], "64 pixels wide and 48 high"),
        (["train", IMAGE, "Mass", -1, 1, 60, 9], "64 pixels wide and 48 high"),
        (["train", IMAGE, "Mass", 1, 1, 60, 480], "were the images resized after"),
        (["train", IMAGE, "Mass", -0.9, 1, -0.1, 9], "64 pixels wide and 48 high"),
    ],
)
def test_load_annotations__wrong_rows_are_named(manifest: Path, row: list[Any], message: str) -> None:
    rows = read_boxes(manifest)
    write_boxes(manifest, [*rows, row])
    with pytest.raises(ManifestError, match=message) as refused:
        load(manifest)
    text = str(refused.value)
    assert f"boxes.csv: row {len(rows) + 2}" in text
    assert SECRET not in text
    assert len(text.splitlines()) <= 5


def test_load_annotations__a_label_that_looks_like_a_slip_is_refused(manifest: Path) -> None:
    rows = [*read_boxes(manifest), ["train", IMAGE, "Masss", 1, 1, 5, 9]]
    write_boxes(manifest, rows)
    with pytest.raises(ManifestError, match=rf"row {len(rows) + 1}: its Label is neither .* did you mean 'Mass'"):
        load(manifest, "detection.labels=[Mass]")


def test_load_annotations__without_a_table(manifest: Path, tmp_path: Path) -> None:
    moved = (manifest / "boxes.csv").rename(tmp_path / "mine.csv")
    with pytest.raises(ManifestError, match=r"has no boxes\.csv; set detection\.boxes"):
        load(manifest)
    assert len(load(manifest, f"detection.boxes={moved}").splits["train"].labels)
    moved.write_text("Path,Label,x,y,w,h\n")
    with pytest.raises(ManifestError, match="no column 'x_min'"):
        load(manifest, f"detection.boxes={moved}")


def test_load_annotations__one_csv_and_frames(manifest: Path) -> None:
    """Paths of one file need no Split; a box belongs to its Frame."""
    lines = ["Path,Split,PatientID,Frame"]
    lines += [f"{name}/{SECRET}-{n}.png,{name},{name}{n},1" for name in ("train", "val") for n in range(6)]
    (manifest / "all.csv").write_text("\n".join(lines) + "\n")
    (manifest / "boxes.csv").write_text(
        f"Path,Frame,Label,x_min,y_min,x_max,y_max\ntrain/{SECRET}-1.png,1,A,1,2,3,4\nval/{SECRET}-2.png,,A,5,6,7,8\n"
    )
    found = load(manifest, f"data.manifest={manifest}/all.csv", f"data.root={manifest}")
    assert found.splits["val"].corners.tolist() == [[5, 6, 7, 8]]
    (manifest / "boxes.csv").write_text(f"Path,Frame,Label,x_min,y_min,x_max,y_max\ntrain/{SECRET}-1.png,2,A,1,2,3,4\n")
    with pytest.raises(ManifestError, match="row 2: no row of the manifest has its Path"):
        load(manifest, f"data.manifest={manifest}/all.csv", f"data.root={manifest}")


def test_annotated__images_without_boxes_have_an_empty_slice(manifest: Path) -> None:
    train = load(manifest).splits["train"]
    own = train.boxes_of(0)
    assert own.start == own.stop
    assert np.isin(np.arange(12), train.images).tolist() == [bool(n % 3) for n in range(12)]


def test_load_annotations__frames_under_another_name(manifest: Path) -> None:
    lines = ["Split,Path,Label,x_min,y_min,x_max,y_max,frame", f"train,{IMAGE},Mass,1,1,5,9,2"]
    (manifest / "boxes.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ManifestError, match=r"did you mean 'frame'\? Then set 'data.columns={Frame:"):
        load(manifest)


def test_load_annotations__a_table_with_the_names_of_the_manifest(manifest: Path) -> None:
    plain = load(manifest)
    for file in manifest.glob("*.csv"):
        text = file.read_text().replace("Path,", "Image Index,", 1).replace(SECRET, f".\\{SECRET}")
        file.write_text(text)
    found = load(manifest, "data.columns={Path: Image Index}")
    for name, annotated in plain.splits.items():
        np.testing.assert_array_equal(found.splits[name].corners, annotated.corners)
        np.testing.assert_array_equal(found.splits[name].images, annotated.images)


def test_load_annotations__boxes_of_images_that_are_left_out(manifest: Path) -> None:
    found = load(manifest, "data.where=Mass == 1")
    assert (len(found.splits["train"]), len(found.splits["val"])) == (8, 5)
    assert found.notes[0] == "9 rows of images that data.where leaves out are not used"
    write_boxes(manifest, [*read_boxes(manifest), ["train", "other.png", "Mass", 1, 1, 5, 5]])
    with pytest.raises(ManifestError, match="no row of the manifest has its Path"):
        load(manifest, "data.where=Mass == 1")


def test_load_annotations__reads_the_whole_manifest_only_for_images_it_does_not_know(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(manifest)
    monkeypatch.setattr(boxes, "whole_tables", lambda _: pytest.fail("read again"))
    assert len(load(manifest, "data.where=Path != absent").splits["train"]) == len(plain.splits["train"])
