"""Settings that hold for every test, and the folder of real data that some of them use."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before any test imports torch, NumPy or OpenCV, and inherited by the processes that tests start: one thread each, so
# that sums are reproducible and tests that run side by side do not fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENCV_FOR_THREADS_NUM"] = "1"

# The same examples on every run, and no failure because a machine was busy.
settings.register_profile("medmoco", derandomize=True, deadline=None)
settings.load_profile("medmoco")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test: as the last one it would keep one worker busy while the other has nothing to do."""
    items.sort(key=lambda item: not item.name.startswith("test_chest_films__pretrain"))


def pytest_collection() -> None:
    """Collect tests without garbage collection, which would search their million objects again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, except among what stays until the end."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and tables that lies beside the checkout; skip where there is none."""
    folder = Path(os.environ.get("MEDMOCO_SHARED", Path(__file__).parents[1] / "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip("needs the folder of real data beside the checkout (or its place in MEDMOCO_SHARED)")
    return folder


# The browser makes no requests of its own, such as for updates.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the Chromium of this machine; skip where there is none."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium on this machine, such as by apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()
