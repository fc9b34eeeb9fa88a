from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.limits import DEFAULT_LIMITS
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import ImageError, ManifestError, SettingsError
from medmoco.segmentation.masks.image_grid import ImageGrid, grid_of_image
from medmoco.segmentation.masks.mask_files import write_dicom_seg
from medmoco.segmentation.masks.mask_rows import MaskedRows, class_values, masked_rows, read_row
from medmoco.segmentation.masks.masks import Classes, check_mask, unnamed_classes
from tests.helpers.dicom_files import save_dicom
from tests.helpers.volume_files import random_pixels

SECRET = "secret-4711"
LESION = Classes(("lesion",), (255,))


def save_png(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def data_of(folder: Path, root: str | None = None, **more: Any) -> DataSettings:
    return DataSettings(manifest=folder, root=root or str(folder), **more)


def split_of(data: DataSettings, masks: list[str], column: str = "Mask") -> Split:
    """Write a manifest of images that do not exist, and return its rows."""
    data.manifest.mkdir(exist_ok=True)
    lines = [f"Path,{column}", *(f"{SECRET}-{row}.png,{mask}" for row, mask in enumerate(masks))]
    (data.manifest / "train.csv").write_text("\n".join(lines) + "\n")
    return load_manifest(data, ["train"])["train"]


def refusal(split: Split, data: DataSettings, **options: Any) -> str:
    with pytest.raises(ManifestError) as refused:
        masked_rows(split, data, **options)
    message = str(refused.value)
    assert SECRET not in message
    assert len(message.splitlines()) <= 5
    return message


def test_masked_rows__blank_cells_are_not_annotated(tmp_path: Path) -> None:
    for number in (0, 2):
        save_png(tmp_path / f"m/{SECRET}-{number}.png", [[0, number]])
    data = data_of(tmp_path)
    split = split_of(data, [f"m/{SECRET}-0.png", "", f"m\\{SECRET}-2.png", "  "])
    rows = masked_rows(split, data)
    assert len(rows) == len(rows.split) == 2
    assert rows.split.rows.tolist() == [2, 4]
    assert [Path(source).name for source in rows.sources] == [f"{SECRET}-0.png", f"{SECRET}-2.png"]
    assert class_values(rows, data) == (2,)
    assert "column Mask is blank in all 2 train rows" in refusal(split_of(data, ["", " "]), data)


def test_masked_rows__another_column_or_none(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", [[0, 1]])
    data = data_of(tmp_path)
    split = split_of(data, ["a.png"], "Lesion")
    assert len(masked_rows(split, data, column="Lesion")) == 1
    assert "no column Mask, which segmentation needs" in refusal(split, data)


def test_masked_rows__root_with_the_name_of_the_split(tmp_path: Path) -> None:
    save_png(tmp_path / "train/m/a.png", [[0, 1]])
    data = data_of(tmp_path, f"{tmp_path}/{{split}}")
    rows = masked_rows(split_of(data, ["m/a.png"]), data)
    assert class_values(rows, data) == (1,)
    absolute = masked_rows(split_of(data, [str(tmp_path / "train/m/a.png")]), data)
    assert class_values(absolute, data) == (1,)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (f"/elsewhere/{SECRET}.png", "row 3: Mask is absolute and not below data.root"),
        (f"../{SECRET}.png", r"row 3: Mask leaves data.root by '..'"),
        (f"m/../../{SECRET}.png", r"row 3: Mask leaves data.root by '..'"),
        (f"C:\\{SECRET}.png", "row 3: Mask is absolute, on the Windows drive C:"),
        (f"m/{SECRET}.png", "1 of 2 train files do not exist (rows 3);\ncheck data.root and the Mask column"),
        ("m", "1 of 2 train files are folders, pipes or devices (rows 3);\ncorrect the Mask column"),
        (f"link/{SECRET}.png", "lie outside data.root, where a symbolic link leads (rows 3)"),
    ],
)
def test_masked_rows__paths_are_refused_as_those_of_images(tmp_path: Path, cell: str, message: str) -> None:
    save_png(tmp_path / "data/m/a.png", [[0, 1]])
    save_png(tmp_path / f"other/{SECRET}.png", [[0, 1]])
    (tmp_path / "data/link").symlink_to(tmp_path / "other")
    data = data_of(tmp_path / "data")
    found = refusal(split_of(data, ["m/a.png", cell]), data)
    assert found.startswith((f"{data.manifest}/train.csv: ", "train.csv: "))
    assert message in found


def test_masked_rows__the_number_of_further_wrong_rows(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    assert "row 2 (and 1 more rows): Mask leaves" in refusal(split_of(data, ["../a.png", "../b.png", ""]), data)


def test_masked_rows__run_lengths_are_never_guessed(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    split = split_of(data, ["1 2 9 1", "-1", ""])
    assert "column Mask has run lengths, not files;\nset segmentation.runs=absolute or relative" in refusal(split, data)
    rows = masked_rows(split, data, runs="absolute")
    assert rows.sources == ("1 2 9 1", "-1")
    assert class_values(rows, data) == (1,)
    mask = read_row(rows, 0, unnamed_classes((1,)), data, ImageGrid((3, 4)))
    assert mask.affine is None
    assert mask.numbers.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    assert not read_row(rows, 1, unnamed_classes((1,)), data, ImageGrid((3, 4))).numbers.any()
    with pytest.raises(ImageError, match=r"^train\.csv row 2, column Mask: its runs end at pixel 9"):
        read_row(rows, 0, unnamed_classes((1,)), data, ImageGrid((2, 4)))
    volumes = data_of(tmp_path, dimensions=3, window="percentiles")
    with pytest.raises(SettingsError, match=r"segmentation\.runs: run lengths are of 2-D images"):
        masked_rows(split, volumes, runs="relative")


def test_read_row__errors_name_the_row(tmp_path: Path) -> None:
    save_png(tmp_path / f"{SECRET}.png", [[0, 255], [7, 0]])
    data = data_of(tmp_path)
    rows = masked_rows(split_of(data, ["", f"{SECRET}.png"]), data)
    with pytest.raises(ImageError, match=r"^train\.csv row 3, column Mask: the mask has the value 7") as refused:
        read_row(rows, 0, LESION, data)
    assert SECRET not in str(refused.value)


def test_class_values__distinct_without_background_and_ignored(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", [[0, 4, 4]])
    save_png(tmp_path / "b.png", [[2, 9, 0]])
    data = data_of(tmp_path)
    rows = masked_rows(split_of(data, ["a.png", "b.png"]), data)
    assert class_values(rows, data) == (2, 4, 9)
    assert class_values(rows, data, ignore=9) == (2, 4)
    only = MaskedRows(rows.split, rows.sources[:1])
    with pytest.raises(ManifestError, match="the masks of all 1 train rows are blank"):
        class_values(only, data, ignore=4)


def test_class_values__images_are_no_masks(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", np.arange(250).reshape(10, 25))
    save_png(tmp_path / "b.png", np.arange(6, 256).reshape(10, 25))
    data = data_of(tmp_path)
    rows = masked_rows(split_of(data, ["a.png", "b.png"]), data)
    with pytest.raises(ImageError, match=r"^train\.csv row 3, column Mask: with this one, the masks have too many"):
        class_values(rows, data)
    np.save(tmp_path / "c.npy", np.full((2, 2), 70_000))
    rows = masked_rows(split_of(data, ["c.npy"]), data)
    with pytest.raises(ImageError, match="too large values for classes"):
        class_values(rows, data)


def test_masked_rows__real_hippocampi(shared: Path) -> None:
    nib = pytest.importorskip("nibabel")
    folder = shared / "data/volumes/hippocampus"
    data = data_of(folder, dimensions=3, window="percentiles")
    split = load_manifest(data, ["val"])["val"]
    rows = masked_rows(split, data)
    assert len(rows) == len(split)
    few = MaskedRows(split.select(np.arange(6)), rows.sources[:6])
    assert class_values(few, data) == (1, 2)
    classes = Classes(("posterior", "anterior"), (2, 1))
    for position, source in enumerate(few.sources):
        mask = read_row(few, position, classes, data)
        image, stored = nib.load(split.files[position]), np.asarray(nib.load(source).dataobj)
        np.testing.assert_array_equal(mask.numbers == 1, stored == 2)
        np.testing.assert_array_equal(mask.numbers == 2, stored == 1)
        assert mask.numbers.any()
        check_mask(mask, image.shape, image.affine)


def test_read_row__dicom_segmentations_name_the_row(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    image = save_dicom(
        tmp_path / f"{SECRET}-0.png", random_pixels(1)[0], Modality="CR", StudyInstanceUID="1.2",
        SeriesInstanceUID="1.2.3",
    )  # fmt: skip
    save_dicom(tmp_path / f"{SECRET}-1.png", random_pixels(1)[0], SOPInstanceUID="1.2.3.5")
    numbers = np.random.default_rng(0).integers(0, 2, (6, 7)).astype(np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", numbers, image, unnamed_classes((1,)))
    data = data_of(tmp_path)
    rows = masked_rows(split_of(data, ["seg.dcm", "seg.dcm"]), data)
    own = grid_of_image(image, 1, (6, 7), DEFAULT_LIMITS)
    np.testing.assert_array_equal(read_row(rows, 0, unnamed_classes((1,)), data, own).numbers, numbers)
    for read in (
        lambda: class_values(rows, data),
        lambda: read_row(
            rows, 1, unnamed_classes((1,)), data, grid_of_image(Path(rows.split.files[1]), 1, (6, 7), DEFAULT_LIMITS)
        ),
    ):
        with pytest.raises(ImageError, match=r"^train\.csv row 3, column Mask: the DICOM segmentation does not refer"):
            read()
