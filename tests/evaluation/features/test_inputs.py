from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medmoco.config import DataSettings, ModelSettings, RunSettings, as_tree, load
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features import inputs
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import Extracted, Mirrored, extract, fingerprint, thumbnails
from medmoco.evaluation.features.inputs import (
    feature_cache,
    features_of,
    find_label,
    find_rows,
    load_splits,
    make_folder,
    read_values,
    with_classes,
)
from medmoco.models.backbones import create_backbone
from tests.helpers.looks import make_data


def test_load_splits__restricts_and_numbers_patients_together(tmp_path: Path) -> None:
    splits = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val", "train", "val"))
    assert list(splits) == ["val", "train"]
    assert splits["val"].rows.tolist() == [3, 5, 7, 9, 11, 13]
    assert not set(splits["val"].patients) & set(splits["train"].patients)


def test_load_splits__a_missing_image_is_refused(tmp_path: Path) -> None:
    settings = make_data(tmp_path)
    (tmp_path / "secret-data/val/secret-3.png").unlink()
    with pytest.raises(ManifestError, match="rows 5") as caught:
        load_splits(settings, ("val",))
    assert "secret-3" not in str(caught.value)


def test_find_rows__in_the_order_asked_for(tmp_path: Path) -> None:
    val = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val",))["val"]
    assert find_rows(val, [13, 3, 13]).tolist() == [5, 0]
    assert find_rows(val, []).tolist() == []


def test_find_rows__one_that_is_not_there_is_named(tmp_path: Path) -> None:
    val = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val",))["val"]
    with pytest.raises(
        ManifestError, match=r"val\.csv: val has no row 1, 4; its 6 rows lie between 3 and 13"
    ) as caught:
        find_rows(val, [3, 1, 4])
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(ManifestError, match=r"no row 100, .*, 109, \.\.\.; its"):
        find_rows(val, list(range(100, 120)))


def test_find_label__the_first_or_one_that_is_there() -> None:
    assert find_label(None, ("A", "B")) == "A"
    assert find_label("B", ("A", "B")) == "B"
    assert find_label(None, ()) is None
    with pytest.raises(SettingsError, match="no label 'C'; known: A, B"):
        find_label("C", ("A", "B"))


def test_make_folder__a_place_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be the folder of the results"):
        make_folder(tmp_path / "file" / "in")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


class _Setting:
    """A split of real files, its encoders, and a count of what was computed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        self.folder = folder
        self.settings = make_data(folder, *overrides)
        self.encoders = {"run": load_encoder("random", self.settings).module, "pixels": thumbnails()}
        self.computed: list[list[str]] = []
        self.log: list[str] = []
        monkeypatch.setattr(inputs, "extract", self.extract)

    def extract(self, encoders: dict[str, nn.Module], split: Split, *more: Any) -> Extracted:
        self.computed.append(list(encoders))
        return extract(encoders, split, *more)

    def changed(self, *overrides: str) -> RunSettings:
        return load(as_tree(self.settings), overrides)

    def features(self, settings: RunSettings | None = None, **encoders: nn.Module) -> Extracted:
        chosen = settings or self.settings
        split = load_splits(chosen, ("val",))["val"]
        cache = feature_cache("random", self.folder, self.log.append)
        self.log.clear()
        self.computed.clear()
        return features_of(encoders or self.encoders, split, chosen, cache, self.log.append)


def assert_same(one: Extracted, other: Extracted) -> None:
    assert list(one.features) == list(other.features)
    for name, values in one.features.items():
        np.testing.assert_array_equal(values, other.features[name])
    assert (one.notices, one.digests) == (other.notices, other.digests)


def test_features_of__computes_only_what_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _Setting(tmp_path, monkeypatch)
    val = load_splits(case.settings, ("val",))["val"]
    plain = features_of(case.encoders, val, case.settings, None, print)
    case.computed.clear()
    assert_same(case.features(), plain)
    assert case.computed == [["run", "pixels"]]
    assert case.log == [f"features of val: {len(val)} images"]
    assert_same(case.features(), plain)
    assert not case.computed
    assert case.log == [f"features of val: {len(val)} images, kept in {tmp_path / 'features'}"]
    case.features(run=case.encoders["run"], mirrored=Mirrored(case.encoders["run"]))
    assert case.computed == [["mirrored"]]


def test_features_of__every_change_that_matters_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _Setting(tmp_path, monkeypatch)
    case.features()
    other = (
        "evaluate.batch_size=3",
        "evaluate.size=40",
        "data.canvas_size=40",
        "views.mean=0.4",
        "evaluate.where=Easy == 1",
    )
    for change in other:
        case.features(case.changed(change))
        assert case.computed == [["run", "pixels"]], change
        case.features(case.changed(change))
        assert not case.computed, change
    with torch.no_grad():
        next(case.encoders["run"].parameters())[0] += 1
    case.features()
    assert case.computed == [["run"]]
    file = tmp_path / "secret-data/val/secret-3.png"
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    case.features()
    assert case.computed == [["run", "pixels"]]


def test_features_of__networks_that_differ_only_in_their_heads_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the weights nor the layers show how many heads attend, which changes the features."""
    case = _Setting(tmp_path, monkeypatch)
    size = case.settings.evaluate.size or case.settings.views.size
    plain, moco = (
        create_backbone(ModelSettings(backbone=name), seed=0, size=size)
        for name in ("vit_small_patch16_224", "moco-v3/vit_small")
    )
    assert fingerprint(plain) == fingerprint(moco)
    first, second = case.features(run=plain).features["run"], case.features(run=moco).features["run"]
    assert case.computed == [["run"]]
    assert not np.array_equal(first, second)


def test_features_of__a_pack_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _Setting(tmp_path, monkeypatch)
    files = case.features()
    make_pack(case.settings.data, tmp_path / "pack", print)
    packed = case.changed(f"data.pack={tmp_path / 'pack'}")
    assert_same(case.features(packed), files)
    assert case.computed == [["run", "pixels"]]
    (tmp_path / "pack").rename(tmp_path / "moved")
    assert_same(case.features(case.changed(f"data.pack={tmp_path / 'moved'}")), files)
    assert not case.computed


def test_features_of__the_files_contain_no_path_and_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _Setting(tmp_path, monkeypatch)
    case.features()
    kept = list((tmp_path / "features").iterdir())
    assert len(kept) == 2
    for file in kept:
        assert b"secret" not in file.read_bytes()
        np.savez(file, other=np.zeros(3))  # a readable file with other arrays
    case.features()
    assert case.computed == [["run", "pixels"]]


def test_feature_cache__is_in_the_run_or_else_in_the_results(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("out: x\n")
    (run / "environment.json").write_text(json.dumps({}))
    log: Callable[[str], None] = print
    places = [feature_cache(encoder, out, log) for encoder, out in
              ((str(run), tmp_path), ("random", tmp_path), (str(tmp_path / "w.pth"), tmp_path))]  # fmt: skip
    assert [place and place.folder for place in places] == [
        run / "features",
        tmp_path / "features",
        tmp_path / "features",
    ]
    assert feature_cache("random", None, log) is None


# ---- classes and numeric targets ----


def with_column(folder: Path, column: str, cells: dict[str, list[str]]) -> dict[str, Split]:
    """A manifest whose splits have these cells in a column."""
    for split, own in cells.items():
        lines = [f"{split}{number}.png,secret-{split}-{number},{cell}" for number, cell in enumerate(own)]
        (folder / f"{split}.csv").write_text("\n".join([f"Path,PatientID,{column}", *lines]))
    return load_manifest(DataSettings.model_validate({"manifest": folder, "root": str(folder)}), tuple(cells))


def test_with_classes__a_label_for_each_class_of_train(tmp_path: Path) -> None:
    splits = with_column(tmp_path, "Class", {"train": ["dog", "cat", "", " dog"], "val": ["cat", "bird", ""]})
    with pytest.raises(ManifestError, match=r"val\.csv row 3: train has no rows of its class in 'Class' \(1 such rows"):
        with_classes(splits, "Class")
    splits = with_column(tmp_path, "Class", {"train": ["dog", "cat", "", " dog"], "val": ["cat", ""]})
    found = with_classes(splits, "Class")
    assert found["train"].label_names == found["val"].label_names == ("cat", "dog")
    nan = np.nan
    np.testing.assert_array_equal(found["train"].labels, [[0, 1], [1, 0], [nan, nan], [0, 1]])
    np.testing.assert_array_equal(found["val"].labels, [[1, 0], [nan, nan]])
    assert not splits["val"].label_names


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ("Klass", SettingsError, "evaluate.classes: train.csv has no column 'Klass'; did you mean 'Class'?"),
        ("PatientID", SettingsError, "evaluate.classes: 'PatientID' identifies patients or images"),
        ("Class", ManifestError, "train.csv: the column 'Class' names 1 classes; 2 or more are needed"),
    ],
)
def test_with_classes__refuses_a_column_without_classes(
    tmp_path: Path, column: str, error: type[Exception], message: str
) -> None:
    splits = with_column(tmp_path, "Class", {"train": ["dog", "", "dog"]})
    with pytest.raises(error) as caught:
        with_classes(splits, column)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_read_values__numbers_and_ages_as_dicom_writes_them(tmp_path: Path) -> None:
    cells = ["34", " 7.5", "", "034Y", "006M", "-1"]
    ages = with_column(tmp_path, "Age", {"train": cells})["train"]
    np.testing.assert_allclose(read_values(ages, "Age"), [34, 7.5, np.nan, 34, 0.5, -1])
    other = with_column(tmp_path, "Width", {"train": ["34", "1e3", "", "-2.5"]})["train"]
    np.testing.assert_allclose(read_values(other, "Width"), [34, 1000, np.nan, -2.5])


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("Age", "34 years", "write a number of years, or a DICOM age such as 034Y, or leave the cell blank"),
        ("Width", "034Y", "write a number without its unit, or leave the cell blank"),
        ("Width", "nan", "the target 'Width' is 'nan', which is not a number (2 such rows in all)"),
        ("Width", "inf", "the target 'Width' is 'inf', which is not a number"),
        ("Width", "1_000", "the target 'Width' is '1_000', which is not a number"),
        ("Width", "3,5", "it has a decimal comma"),
    ],
)
def test_read_values__refuses_other_cells(tmp_path: Path, column: str, cell: str, message: str) -> None:
    quoted = f'"{cell}"'
    split = with_column(tmp_path, column, {"train": ["1", "", quoted, quoted]})["train"]
    with pytest.raises(ManifestError) as caught:
        read_values(split, column)
    assert message in str(caught.value)
    assert str(caught.value).startswith("train.csv row 4: the target ")
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(SettingsError, match=r"evaluate\.targets: train\.csv has no column 'Weight'"):
        read_values(split, "Weight")
