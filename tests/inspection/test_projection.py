from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from medmoco.errors import ManifestError, SettingsError
from medmoco.inspection import projection as module
from medmoco.inspection.projection import project, projection
from tests.helpers.looks import make_data, make_run, names_a_secret


def two_groups(rows: int = 60) -> np.ndarray:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 20)).astype(np.float32)
    features[: rows // 2, 0] += 30
    features[rows // 2 :, 1] += 30
    return features


def test_lay_out__keeps_what_is_alike_together() -> None:
    features = two_groups()
    points, trust = project(features * np.random.default_rng(1).uniform(0.1, 10, (60, 1)).astype(np.float32), 0)
    groups = points[:30], points[30:]
    spread = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    assert np.linalg.norm(groups[0].mean(0) - groups[1].mean(0)) > 2 * spread
    assert trust > 0.8


def test_lay_out__is_the_same_for_the_same_seed() -> None:
    features = two_groups(30)
    np.testing.assert_array_equal(project(features, 3)[0], project(features, 3)[0])


def test_lay_out__random_places_are_not_trusted() -> None:
    _, good = project(two_groups(), 0)
    mixed = np.random.default_rng(0).permutation(two_groups())
    assert module.trustworthiness(mixed, project(two_groups(), 0)[0], n_neighbors=15) < 0.65 < good


def test_projection__writes_numbers_and_a_figure(tmp_path: Path) -> None:
    settings = make_data(tmp_path)
    out = tmp_path / "out"
    text = projection(settings, make_run(settings), out, colour="Hard")
    table = pd.read_csv(out / "projection.csv")
    assert list(table.columns) == ["row", "x", "y", "Easy", "Hard"]
    assert table["row"].tolist() == list(range(2, 14))
    assert table["Hard"].isna().sum() == 4
    drawn = (out / "projection.svg").read_text()
    for legend in ("Hard missing (n = 4)", "Hard 0 (n = 4)", "Hard 1 (n = 4)", "val: 12 images"):
        assert legend in drawn
    assert cv2.imread(str(out / "projection.png")).shape[2] == 3
    assert "trustworthiness" in text
    assert not names_a_secret(*out.iterdir())
    projection(settings, make_run(settings), tmp_path / "again", colour="Hard")
    for name in ("projection.csv", "projection.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_styles__differ_in_shape_and_fill_so_that_they_print() -> None:
    assert len({style["marker"] for style in module._STYLES.values()}) == len(module._STYLES)
    assert module._STYLES["0"]["facecolors"] == "none"
    assert "color" in module._STYLES["1"]


def test_projection__many_images_are_thinned_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 11)
    settings = make_data(tmp_path, "seed=3")
    text = projection(settings, "random", tmp_path / "out", split="train")
    assert "train: 11 of 14 images, drawn at random" in text
    assert "11 of 14 images, drawn at random" in (tmp_path / "out/projection.svg").read_text()
    rows = pd.read_csv(tmp_path / "out/projection.csv")["row"].tolist()
    assert len(set(rows)) == 11
    assert rows == sorted(rows)


def test_projection__without_labels_there_is_one_group(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "data.labels={}")
    projection(settings, "random", tmp_path / "out")
    assert list(pd.read_csv(tmp_path / "out/projection.csv").columns) == ["row", "x", "y"]
    assert ">n = 12<" in (tmp_path / "out/projection.svg").read_text()


def test_projection__what_cannot_be_is_refused(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "evaluate.where=Easy == 1")
    with pytest.raises(ManifestError, match=r"val\.csv: 6 val images are too few; at least 10 are needed"):
        projection(settings, "random", tmp_path / "out")
    with pytest.raises(SettingsError, match="no label 'Other'; known: Easy, Hard"):
        projection(settings, "random", tmp_path / "out", colour="Other")
