"""prepare.py for volumes, imported from medmoco; test_standalone.py runs the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.errors import ImageError
from medmoco.exporting.volume_contract import steps_read
from medmoco.exporting.volume_file import rules_of, volume
from tests.helpers.volume_files import random_pixels, save_series
from tests.helpers.volume_subjects import CT, head_like, prepared


def contract_of(found: Any) -> dict[str, Any]:
    return {**steps_read(found), "normalise": {"mean": found.mean, "std": found.std}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", head_like())
    return tmp_path / "a.npy"


@pytest.mark.parametrize("volumes", ["sliding", "resized"])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_volume__is_bitwise_what_training_sees(file: Path, volumes: str, bit_depth: int) -> None:
    found = prepared(volumes=volumes, bit_depth=bit_depth)
    views, expected = volume(file, contract_of(found)), found.prepare(file)
    assert views.dtype == np.float32
    assert views.shape == ((2, 1, 32, 32, 32) if volumes == "sliding" else (1, 32, 32, 32))
    np.testing.assert_array_equal(views, expected)


def test_volume__series_of_a_folder(tmp_path: Path) -> None:
    save_series(tmp_path / "two", random_pixels(), names=[f"{i}.dcm" for i in range(5)])
    save_series(
        tmp_path / "two", random_pixels(seed=1), names=[f"b{i}.dcm" for i in range(5)], SeriesInstanceUID="1.2.4"
    )
    contract = contract_of(prepared(volumes="resized", **CT))
    first, second = (volume(tmp_path / "two", contract, series=uid) for uid in ("1.2.3", "1.2.4"))
    assert np.abs(first - second).max() > 0
    with pytest.raises(ImageError, match="contains 2 DICOM series"):
        volume(tmp_path / "two", contract)


def test_volume__is_limited(file: Path) -> None:
    with pytest.raises(ImageError, match="max_bytes"):
        volume(file, contract_of(prepared()), limits=Limits(max_bytes=1000))


def test_rules_of__have_the_numbers_of_the_settings() -> None:
    rules = rules_of(contract_of(prepared(**CT)) | {"grayscale": {"window": [40, 400]}}, DEFAULT_LIMITS)
    assert rules.window == (40.0, 400.0)
    assert rules.spacing is None
    assert rules.bit_depth == 16
    assert rules_of(contract_of(prepared()), DEFAULT_LIMITS).spacing == (1.5, 1.0, 2.0)
