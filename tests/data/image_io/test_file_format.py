from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.data.image_io.file_format import kind_of
from medmoco.data.image_io.images import read_image
from medmoco.data.image_io.intensity import Unreadable
from medmoco.errors import ImageError


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "empty"),
        (b"SIMPLE  =                    T", r"FITS file; convert it to \.npy"),
        (b"GIF89a", "a GIF file; convert it"),
        (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 file; convert it"),
        (b"<!DOCTYPE html>", "a web page .* download the file again"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip; unpack it"),
        (b"anything else", "its content is not PNG, JPEG, TIFF or DICOM"),
    ],
)
def test_kind_of__names_what_is_not_read(start: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        kind_of(start and start.ljust(132))


def test_kind_of__an_array_in_a_gray_run_says_what_to_set(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.float32))
    with pytest.raises(ImageError, match=r"set data\.channels"):
        read_image(tmp_path / "a.npy")
