"""Settings that hold for every test, and the folder of real data that some of them use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports torch, NumPy or OpenCV, and inherited by the processes that tests start: one thread each, so
# that sums are reproducible and tests that run side by side do not fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENCV_FOR_THREADS_NUM"] = "1"

# The same examples on every run, and no failure because a machine was busy.
settings.register_profile("medmoco", derandomize=True, deadline=None)
settings.load_profile("medmoco")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test: as the last one it would keep one worker busy while the other has nothing to do."""
    items.sort(key=lambda item: not item.name.startswith("test_whole_journey"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and tables that lies beside the checkout; skip where there is none."""
    folder = Path(os.environ.get("MEDMOCO_SHARED", Path(__file__).parents[1] / "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip("needs the folder of real data beside the checkout (or its place in MEDMOCO_SHARED)")
    return folder
