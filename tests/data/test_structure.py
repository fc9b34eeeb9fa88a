"""What encoded streams claim; whole hostile files are in test_hostile.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medmoco.data.limits import Limits
from medmoco.data.structure import check_pages
from medmoco.errors import ImageError


@pytest.mark.parametrize("big", [False, True])
def test_check_pages__counts(big: bool) -> None:
    page = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    buffer = io.BytesIO()
    page.save(buffer, "TIFF", save_all=True, append_images=[page] * 2, big_tiff=big, description="x" * 99)
    check_pages(buffer, Limits(max_frames=3))
    with pytest.raises(ImageError, match="3 frames are more than"):
        check_pages(buffer, Limits(max_frames=2))
    with pytest.raises(ImageError, match="directory"):
        check_pages(io.BytesIO(buffer.getvalue()[:-160]), Limits())
