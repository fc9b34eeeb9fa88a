"""Checks of what headers state: numbers of voxels, axes, and values that are not finite."""

import numpy as np
import pytest

from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.image_io.limits import Limits
from medmoco.data.volume_io.headers import (
    check_finite,
    check_voxels,
    library,
    three_axes,
    without_header_values,
)
from medmoco.errors import ImageError, SettingsError


@pytest.mark.parametrize(
    ("shape", "words"),
    [((11, 10, 5), "max_pixels"), ((10, 10, 6), "max_frames"), ((10, 10, 5), None), ((9, 10, 5), None)],
)
def test_check_voxels__pixels_and_slices(shape: tuple[int, int, int], words: str | None) -> None:
    limits = Limits(10**9, 100, 5)
    if words:
        with pytest.raises(ImageError, match=words):
            check_voxels(shape, 2, limits)
    else:
        check_voxels(shape, 2, limits)


def test_check_voxels__bytes() -> None:
    check_voxels((10, 10, 10), 4, Limits(4000))
    with pytest.raises(ImageError, match="10 x 10 x 10 voxels take 8000 bytes"):
        check_voxels((10, 10, 10), 8, Limits(4000))
    for shape in ((10, 10, 0), (0, 10, 10), (10, -1, 10)):
        with pytest.raises(ImageError, match="damaged"):
            check_voxels(shape, 1, Limits())


def test_check_voxels__a_ct_of_the_whole_body_is_accepted() -> None:
    check_voxels((512, 512, 2000), 2, Limits())


def test_three_axes() -> None:
    assert three_axes((5,)) == (5, 1, 1)
    assert three_axes((5, 6)) == (5, 6, 1)
    assert three_axes((5, 6, 7, 1, 1)) == (5, 6, 7)
    with pytest.raises(Unreadable, match="6 volumes"):
        three_axes((5, 6, 7, 2, 1, 3))


def test_check_finite() -> None:
    values = np.full((3, 3, 3), 3e38, np.float32)  # its sum exceeds float32
    check_finite(values)
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(Unreadable, match="3 of 27"), np.errstate(invalid="ignore"):
        check_finite(values)


def test_library() -> None:
    with pytest.raises(SettingsError, match=r"pip install medmoco\[volumes\]"):
        library("no_such_library")  # type: ignore[arg-type]


def test_without_header_values() -> None:
    with (
        pytest.raises(Unreadable, match=r"^the NIfTI file cannot be decoded \(KeyError\)"),
        without_header_values("NIfTI"),
    ):
        raise KeyError("secret-4711")
    with pytest.raises(ImageError, match="ours"), without_header_values("NRRD"):
        raise ImageError("ours")
