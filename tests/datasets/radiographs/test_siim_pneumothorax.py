from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.datasets.radiographs.siim_pneumothorax import mask_box
from medmoco.segmentation.masks.run_lengths import decode_runs
from tests.helpers.dataset_files import go, put, refusal


def siim_code(mask: Any) -> str:
    """Encode a (1024, 1024) mask as the makers do: gaps and runs, down the columns."""
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    starts, ends = flat[::2], flat[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {run}" for gap, run in zip(gaps, ends - starts, strict=True))


def test_prepare__one_row_per_image_and_a_box_per_mask(tmp_path: Path) -> None:
    first, second = np.zeros((2, 1024, 1024), int)
    first[100:151, 30:40] = 1
    first[120:171, 35:61] = 1
    second[0, 1023] = 1
    rows = "".join(f"1.2.{number}, -1\n" for number in range(30))
    text = f"ImageId, EncodedPixels\n{rows}1.2.99,{siim_code(first)}\n1.2.99, {siim_code(second)}\n"
    files = go("siim_pneumothorax", put(tmp_path / "source", {"train-rle.csv": text}), workers=1)
    assert len(files["all"]) == 31
    assert files["all"].loc["dicom-images-train/1.2.99.dcm", "Pneumothorax"] == "1"
    assert (files["all"]["Pneumothorax"] == "1").sum() == 1
    masks = files["all"]["Mask"]
    shown = decode_runs(masks["dicom-images-train/1.2.99.dcm"], (1024, 1024), "relative")
    np.testing.assert_array_equal(shown, (first + second) > 0)
    assert not decode_runs(masks["dicom-images-train/1.2.3.dcm"], (1024, 1024), "relative").any()
    assert set(files["boxes"]["Path"]) == set(files["all"].index)
    assert files["boxes"][["x_min", "y_min", "x_max", "y_max"]].to_numpy()[:2].tolist() == [
        ["30", "100", "61", "171"],
        ["1023", "0", "1024", "1"],
    ]


def test_mask_box__equals_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        mask = np.zeros((1024, 1024), int)
        for left, top, width, height in generator.integers([0, 0, 1, 1], [900, 900, 124, 124], size=(3, 4)):
            mask[top : top + height, left : left + width] = 1
        lines, columns = np.nonzero(mask)
        expected = (columns.min(), lines.min(), columns.max() + 1, lines.max() + 1)
        assert mask_box(siim_code(mask)) == expected
    whole_column = np.zeros((1024, 1024), int)
    whole_column[:, 5:7] = 1  # one run over two columns
    assert mask_box(siim_code(whole_column)) == (5, 0, 7, 1024)


def test_prepare__no_mask_at_all(tmp_path: Path) -> None:
    text = "ImageId, EncodedPixels\n" + "".join(f"1.2.{number}, -1\n" for number in range(30))
    files = go("siim_pneumothorax", put(tmp_path / "source", {"train-rle.csv": text}), workers=1)
    assert set(files["all"]["Pneumothorax"]) == {"0"}
    assert len(files["boxes"]) == 30
    assert set(files["boxes"]["Label"]) == {""}


@pytest.mark.parametrize("code", ["1 2 3", "x y", "1048570 7", "5 0", "-3 2"])
def test_prepare__codes_refused(tmp_path: Path, code: str) -> None:
    source = put(tmp_path / "source", {"train-rle.csv": f"ImageId, EncodedPixels\na,-1\nb,{code}\n"})
    assert "EncodedPixels" in refusal("siim_pneumothorax", source)
