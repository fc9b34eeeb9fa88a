from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medmoco
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import ManifestError, SettingsError
from tests.helpers.dataset_files import go, put
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.volume_files import random_pixels, save_series


def test_prepare__headers_frames_and_what_is_no_image(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {"notes.txt": "x", "a/.hidden": ""})
    for patient in range(20):
        for image in range(2):
            file = source / f"a/p{patient}/{image}"  # no suffix
            file.parent.mkdir(parents=True, exist_ok=True)
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M")
            tags = {"PatientID": f"00{patient}"} if patient else {"PatientID": None}
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M", **tags)
    save_dicom(source / "cine.dcm", np.stack([RAMP12] * 3), NumberOfFrames=3, PatientID="c")
    files = go("dicom_tree", source, workers=2)
    table = files["all"].reset_index()
    assert len(table) == 43
    assert table[table["Path"] == "cine.dcm"]["Frame"].tolist() == ["1", "2", "3"]
    row = table[table["Path"] == "a/p7/1"].iloc[0]
    assert row[["Frame", "PatientID", "StudyID", "Sex", "Age", "Rows"]].tolist() == ["1", "007", "1.7", "M", "58", "64"]
    assert table[table["PatientID"] == ""]["Split"].nunique() == 1  # one study
    assert files["left_out"].to_numpy().tolist() == [["notes.txt", "the content is not DICOM"]]
    assert "4711" not in files["page"]
    assert "2 rows have no PatientID" in files["page"]


def test_prepare__volumes_are_series_that_split_check_and_reading_accept(tmp_path: Path) -> None:
    """As from a PACS: 20 patients, the series of some in one folder."""
    source = tmp_path / "pacs"
    (source / "flat").mkdir(parents=True)
    for number in range(20):
        folder = source / ("flat" if number < 3 else f"{number}/CT")
        folder.parent.mkdir(exist_ok=True)
        names = [f"IM{number}_{k}" for k in range(24)]
        tags = {"PatientID": f"0{number}", "StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"2.{number}"}
        save_series(folder, random_pixels(24, 30, 32, seed=number), names=names, **tags)
    found = medmoco.prepare("dicom_tree", source, tmp_path / "out", volumes=True, workers=1)
    assert (found.left_out, sum(found.counts.values())) == (0, 20)
    table = pd.concat([pd.read_csv(tmp_path / f"out/{split}.csv", dtype=str) for split in found.counts])
    assert (table["Path"] == "flat").sum() == 3
    assert sorted(zip(table["PatientID"], table["SeriesInstanceUID"], strict=True)) == sorted(
        (f"0{number}", f"2.{number}") for number in range(20)
    )
    for row in table.itertuples():
        volume = read_volume(source / str(row.Path), series=str(row.SeriesInstanceUID))
        spacing = [float(str(cell)) for cell in (row.SpacingX, row.SpacingY, row.SpacingZ)]
        np.testing.assert_allclose(spacing, volume.spacing, rtol=1e-5)
        assert int(str(row.Slices)) == volume.values.shape[2]
    assert "Recommended for all rows: `data.spacing: [0.7, 0.8, 2.5]" in (tmp_path / "out/README.md").read_text()
    table.to_csv(tmp_path / "all.csv", index=False)
    medmoco.split(tmp_path / "all.csv", tmp_path / "split", val=0.2)
    data = {"manifest": tmp_path / "split", "root": str(source), "dimensions": 3, "window": [40, 400], "workers": 1}
    config = {"out": str(tmp_path / "run"), "data": data, "views": {"recipe": "ct", "size": 16}}
    report = medmoco.check(config)
    assert not report.faults
    assert "volumes: 20 DICOM series; modality: 20 CT" in report.text


def test_prepare__volumes_only_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="chexpert has no volumes; they need the data set dicom_tree"):
        medmoco.prepare("chexpert", tmp_path, tmp_path / "out", volumes=True)
    save_dicom(tmp_path / "film.dcm", RAMP12, Modality="DX")
    (tmp_path / "source").mkdir()
    (tmp_path / "film.dcm").rename(tmp_path / "source/film.dcm")
    with pytest.raises(ManifestError, match="no usable row of a DICOM tree; the most frequent reason: not part of a"):
        medmoco.prepare("dicom_tree", tmp_path / "source", tmp_path / "out", volumes=True)
