"""Excerpts of public data sets in their makers' formats, prepared and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import load_manifest
from medmoco.datasets.prepare import prepare
from medmoco.errors import ManifestError

Files = dict[str, pd.DataFrame]


def put(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def go(name: str, source: Path, **options: Any) -> Files:
    """Prepare a data set; return what was written by name, with all splits together as `all`."""
    out = source.parent / f"out{len(list(source.parent.iterdir()))}"
    prepare(name, source, out, **options)
    files: Files = {file.stem: pd.read_csv(file, dtype=str, keep_default_na=False) for file in out.glob("*.csv")}
    splits = {name: table for name, table in files.items() if name in ("train", "val", "test")}
    files["all"] = pd.concat([table.assign(Split=name) for name, table in splits.items()]).set_index("Path")
    if "PatientID" in files["all"]:
        named = files["all"][files["all"]["PatientID"] != ""]
        assert named.groupby("PatientID")["Split"].nunique().max() == 1
    settings = DataSettings.model_validate({"manifest": out, "root": str(source)})
    for split in load_manifest(settings, list(splits)).values():
        assert not any("are in both" in notice for notice in split.notices)
    files["page"] = (out / "README.md").read_text()  # type: ignore[assignment]
    return files


def refusal(name: str, source: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        prepare(name, source, source.parent / "refused")
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def labels(table: pd.DataFrame, path: str, names: list[str]) -> list[str]:
    return [str(table.loc[path, name]) for name in names]


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{}\n"
)
NIH_SIZES = ",2682,2749,0.143,0.143"


def nih_files(older: bool) -> dict[str, str]:
    """Thirty patients with two images each; the older file has units of age and a column without a name."""
    ages = ["058Y", "011M", "009D", "414Y"] if older else ["58", "0", "0", "95"]
    end = "," if older else ""
    rows = "".join(
        f"{patient:08d}_{image:03d}.png,{'Pneumonia|Effusion' if patient % 3 == 0 else 'No Finding'},{image + 4},"
        f"{patient},{ages[patient % 4]},{'MF'[patient % 2]},{'PA' if image else 'AP'}{NIH_SIZES}{end}\n"
        for patient in range(1, 31)
        for image in (0, 1)
    )
    return {
        "Data_Entry_2017.csv" if older else "Data_Entry_2017_v2020.csv": NIH_HEADER.format(end) + rows,
        "test_list.txt": "".join(f"{patient:08d}_{image:03d}.png\n" for patient in range(1, 7) for image in (0, 1)),
        "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        + f"00000003_001.png,Infiltrate,225.084745762712,547.019,86.5,79.25{',,,' if older else ''}\n",
    }
