"""What is refused before it is decoded, by kind and by size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medmoco.config import DataSettings
from medmoco.data.image_io.limits import (
    DEFAULT_LIMITS,
    Limits,
    check_file,
    check_size,
    limits_of,
    within,
)
from medmoco.errors import ImageError


def test_limits__are_the_settings() -> None:
    data = {"manifest": "m", "root": "r"}
    assert limits_of(DataSettings.model_validate(data)) == DEFAULT_LIMITS == Limits()
    limits = {"max_bytes": 1, "max_pixels": 2, "max_frames": 3}
    assert limits_of(DataSettings.model_validate(data | limits)) == Limits(**limits)


def test_check_size__limits() -> None:
    check_size(10, 11, Limits(max_pixels=110))
    with pytest.raises(ImageError, match=r"10 x 11 pixels exceed data\.max_pixels = 109"):
        check_size(10, 11, Limits(max_pixels=109))
    for width, height in ((0, 5), (5, 0), (-1, -1)):
        with pytest.raises(ImageError, match=f"header states {width} x {height} pixels"):
            check_size(width, height, Limits())


def test_within__size_and_frames() -> None:
    within(Limits(max_pixels=6, max_frames=3))(3, 2, 3)
    with pytest.raises(ImageError, match=r"3 frames exceed data\.max_frames = 2"):
        within(Limits(max_frames=2))(1, 1, 3)
    with pytest.raises(ImageError, match=r"3 x 2 pixels exceed data\.max_pixels = 5"):
        within(Limits(max_pixels=5))(3, 2, 1)


def test_check_file__size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    check_file(tmp_path / "a", Limits(max_bytes=10))
    with pytest.raises(ImageError, match=r"10 bytes exceed data\.max_bytes = 9"):
        check_file(tmp_path / "a", Limits(max_bytes=9))


def test_check_file__no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match="a folder, a pipe or a device"):
            check_file(path, Limits())
    for path, words in ((tmp_path / "absent", "does not exist"), (tmp_path / "loop", "cannot be opened: Too many")):
        with pytest.raises(ImageError, match=words):
            check_file(path, Limits())
    with pytest.raises(ImageError, match="cannot be opened: Not a directory"):
        check_file(tmp_path / "file/below", Limits())


def test_check_file__another_name(tmp_path: Path) -> None:
    (tmp_path / "a.PNG").touch()
    with pytest.raises(ImageError, match="the file does not exist; the file exists with different upper"):
        check_file(tmp_path / "a.png", Limits())
