"""Volumes as NIfTI files, a manifest and the settings to pack them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest

from medmoco.config import DataSettings
from medmoco.data.pack.pack_writing import make_pack
from medmoco.data.volume_io.volume import Volume
from medmoco.errors import ImageError
from tests.helpers.packs import write_csv

SHARED = Path(os.environ.get("MEDMOCO_SHARED", Path(__file__).parents[2] / "../shared"))
REAL = SHARED.resolve() / "data/volumes"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared volumes are not on this machine")


def read_nifti(path: str | Path, *, series: str = "", limits: Any = None) -> Volume:
    """Read a NIfTI file with nibabel alone."""
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        return Volume(np.asarray(image.dataobj).astype(np.float32), image.affine)
    except Exception:
        raise ImageError("it cannot be read") from None


def provide_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the readers of volumes, if this checkout has none."""
    name = "medmoco.data.volume_io.reading"
    if importlib.util.find_spec(name) is None:
        reading = ModuleType(name)
        reading.read_volume = read_nifti  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, reading)


def write_nifti(file: Path, values: Any, spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
    nibabel.save(nibabel.Nifti1Image(np.asarray(values), np.diag([*spacing, 1])), file)


def make_volumes(folder: Path, **counts: int) -> None:
    """Write `counts` volumes of different shapes for each split, and its CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        names = [f"{split}-{number}.nii.gz" for number in range(count)]
        for number, name in enumerate(names):
            write_nifti(folder / name, rng.integers(100, 1000, (40 + number, 36, 20), dtype=np.int16), (1, 1, 2.5))
        write_csv(folder, split, names)


def data_for(folder: Path, **changes: Any) -> DataSettings:
    base = {"manifest": folder, "root": str(folder), "dimensions": 3, "window": "percentiles", "workers": 1}
    return DataSettings.model_validate({**base, **changes})


def pack(folder: Path, out: Path, **changes: Any) -> tuple[int, list[str]]:
    """Make a pack; return the number of failures and what was said."""
    said: list[str] = []
    return make_pack(data_for(folder, **changes), out, said.append), said
