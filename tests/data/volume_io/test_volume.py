from __future__ import annotations

import numpy as np
import pytest

from medmoco.data.volume_io.volume import AXES, Volume, VolumeCanvas


def test_volume__spacing_is_the_length_of_each_axis_of_the_matrix_even_if_oblique() -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 2.0, 5.0])
    volume = Volume(np.zeros((4, 3, 2), np.float32), affine)
    assert volume.spacing == pytest.approx((0.5, 2.0, 5.0))


def test_volume_canvas__has_the_shape_of_its_pixels() -> None:
    assert VolumeCanvas(np.zeros((4, 3, 2), np.uint8), (1, 1, 1)).shape == (4, 3, 2)
    assert len(AXES) == 3
