"""Reading as training does and as an export's prepare.py does, which must not differ."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.image_io.images import read_image
from medmoco.data.image_io.intensity import GrayImage, Window
from medmoco.errors import ImageError
from tests.helpers.shipped import shipped

SECRET = "4711"


def read_both(path: Path, frame: int = 1, window: Window = "voi") -> GrayImage | str:
    """Return the image, or the reason why there is none, having made sure that both ways of reading agree."""
    found: GrayImage | str
    try:
        found = read_image(path, frame=frame, window=window)
    except ImageError as error:
        found = str(error)
        assert len(found.splitlines()) <= 4
        assert SECRET not in found
        assert str(path) not in str(found)
        if "data.max_" in str(found):
            return found  # a limit, which prepare.py does not have
    if isinstance(found, str):
        with pytest.raises(ValueError, match=f"^{re.escape(found)}$"):
            shipped().gray(path, window, frame)
    else:
        pixels, white = shipped().gray(path, window, frame)
        np.testing.assert_array_equal(pixels, found.pixels)
        assert white == 2**found.bits - 1
    return found
