from __future__ import annotations

import numpy as np
import pytest

from medmoco.evaluation.discrimination import discrimination


def test_discrimination__grows_along_x_and_has_the_area_of_its_name() -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat([0.0, 1.0], 50)
    scores = generator.normal(size=100) + targets
    x, y, value = discrimination("roc", targets, scores)
    assert (np.diff(x) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(value)
    x, y, value = discrimination("precision_recall", targets, scores)
    assert (np.diff(x) >= 0).all()
    assert float(np.sum(np.diff(x) * y[1:])) == pytest.approx(value)
