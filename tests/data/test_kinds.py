from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.data.images import read_image
from medmoco.data.kinds import file_format, kind_of
from medmoco.errors import ImageError


def test_file_format__of_an_array_is_its_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    assert file_format(tmp_path / "a.npy") == ("NPY", 32, "float32")


def test_kind_of__fits_is_sent_to_npy() -> None:
    with pytest.raises(ImageError, match=r"FITS file; convert it to \.npy"):
        kind_of(b"SIMPLE  =                    T".ljust(132))


def test_kind_of__an_array_in_a_gray_run_says_what_to_set(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.float32))
    with pytest.raises(ImageError, match=r"set data\.channels"):
        read_image(tmp_path / "a.npy")
