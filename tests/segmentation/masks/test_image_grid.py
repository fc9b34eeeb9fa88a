from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from medmoco.data.image_io.limits import DEFAULT_LIMITS
from medmoco.data.volume_io.reading import read_volume
from medmoco.segmentation.masks.image_grid import grid_of_image, grid_of_volume, pixel_spacing, reference_of
from tests.helpers.dicom_files import save_dicom
from tests.helpers.volume_files import SAGITTAL, item, random_pixels, save_enhanced, save_series


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.3, 0.25]}, (0.3, 0.25)),
        ({"ImagerPixelSpacing": [0.3, 0.25]}, (0.3, 0.25)),
        # Calibrated: the spacing in the patient differs from that at the detector.
        ({"PixelSpacing": [0.27, 0.22], "ImagerPixelSpacing": [0.3, 0.25]}, (0.27, 0.22)),
        ({"ImagerPixelSpacing": [0.3, 0.25], "NominalScannedPixelSpacing": [1, 1]}, (0.3, 0.25)),
        ({"NominalScannedPixelSpacing": [0.2, 0.2]}, (0.2, 0.2)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.3, 0.25]}, (0.3, 0.25)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.25]}, (0.3, 0.25)),
        ({"PixelSpacing": [0.3]}, None),
        ({"PixelSpacing": [0.01, 20]}, None),  # nobody builds such pixels
        ({"PixelAspectRatio": [1, 2]}, None),
    ],
)
def test_pixel_spacing__that_in_the_patient_wins(tags: dict[str, Any], expected: Any) -> None:
    """Source: DICOM PS3.3 10.7.1.1."""
    header = Dataset()
    for name, value in tags.items():
        setattr(header, name, value)
    assert pixel_spacing(header, 1) == expected


def test_pixel_spacing__of_a_frame() -> None:
    header = Dataset()
    header.PerFrameFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=item(PixelSpacing=[spacing, spacing]))[0] for spacing in (0.5, 0.7)
    ]
    assert [pixel_spacing(header, frame) for frame in (1, 2)] == [(0.5, 0.5), (0.7, 0.7)]


def test_grid_of_image__a_file_that_is_not_dicom_states_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png", dpi=(72, 72))
    grid = grid_of_image(tmp_path / "a.png", 1, (4, 5), DEFAULT_LIMITS)
    assert (grid.shape, grid.affine, grid.spacing, grid.reference) == ((4, 5), None, None, None)
    assert reference_of(tmp_path / "a.png", 1, DEFAULT_LIMITS) is None


def test_grid_of_image__a_radiograph_has_a_spacing_but_no_place(tmp_path: Path) -> None:
    file = save_dicom(tmp_path / "a.dcm", random_pixels(1)[0], ImagerPixelSpacing=[0.2, 0.1])
    grid = grid_of_image(file, 1, (6, 7), DEFAULT_LIMITS)
    assert (grid.affine, grid.spacing) == (None, (0.2, 0.1))
    assert grid.reference is not None
    assert (grid.reference.instance, grid.reference.frame, grid.reference.frames) == ("1.2.3.4", 1, 1)
    assert "1.2.3.4" not in repr(grid)


def test_grid_of_image__a_slice_lies_where_its_volume_has_it(tmp_path: Path) -> None:
    files = save_series(tmp_path / "series", random_pixels(), cosines=SAGITTAL, FrameOfReferenceUID="1.2.9")
    volume = read_volume(tmp_path / "series")
    assert grid_of_volume(volume).frame_of_reference == "1.2.9"
    assert "1.2.9" not in repr(volume)
    for file in files:
        grid = grid_of_image(file, 1, (6, 7), DEFAULT_LIMITS)
        pixels = pydicom.dcmread(file).pixel_array - 1024.0
        assert grid.affine is not None
        for row, column in ((0, 0), (5, 0), (2, 6)):
            x, y, z = np.rint(np.linalg.solve(volume.affine, grid.affine @ [row, column, 0, 1])[:3]).astype(int)
            assert volume.values[x, y, z] == pixels[row, column]


def test_grid_of_image__a_frame_of_an_enhanced_file(tmp_path: Path) -> None:
    file = save_enhanced(tmp_path / "a.dcm", random_pixels(3), [(0, 0, 4 * k) for k in (1, 0, 2)])
    found = [grid_of_image(file, frame, (6, 7), DEFAULT_LIMITS) for frame in (1, 2, 3)]
    assert [grid.affine[2, 3] for grid in found if grid.affine is not None] == [4, 0, 8]
    assert {grid.spacing for grid in found} == {(0.8, 0.7)}
    assert [grid.reference.frame for grid in found if grid.reference] == [1, 2, 3]
