from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from medmoco.config import ViewSettings
from medmoco.data.augment.views import draw
from medmoco.data.image_io.images import Canvas


def test_view_parameters__one_of_each_for_every_view_and_not_to_be_changed() -> None:
    canvases = [Canvas(np.zeros((64, 64), np.uint8), 64, 40)] * 3
    params = draw(ViewSettings(size=32), canvases, seed=0, epoch=0, samples=np.arange(3), view=0)
    assert all(len(values) == 3 for values in vars(params).values())
    with pytest.raises(FrozenInstanceError):
        params.angle = params.angle + 1  # type: ignore[misc]
