from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.errors import ManifestError, SettingsError
from medmoco.segmentation.annotated.annotations import Annotations, case_facts, load_annotations, units_of
from medmoco.segmentation.masks.image_grid import ImageGrid
from medmoco.segmentation.scores.metrics import IN_PIXELS, OF_IMAGES, OF_VOLUMES
from medmoco.segmentation.segment import settings_of_run
from tests.helpers.blobs import SECRET, make_settings, write_blobs


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_blobs(tmp_path / "data", 2)


def load(manifest: Path, *overrides: str, test: bool = False, **classes: str) -> Annotations:
    settings = settings_of_run(make_settings(manifest, 2, *overrides, **classes), Path("run"))
    return load_annotations(settings, "random", test)


def test_load_annotations__classes_are_by_default_the_values_of_the_masks(manifest: Path) -> None:
    classes = load(manifest, classes="{}").classes
    assert (classes.names, classes.values, classes.ignore) == (("class 10", "class 20"), (10, 20), 99)


def test_load_annotations__reads_test_only_when_asked(manifest: Path) -> None:
    assert load(manifest).scored == ["val"]
    assert load(manifest, test=True).scored == ["val", "test"]


def test_load_annotations__smaller_fractions_of_patients_are_parts_of_larger_ones(manifest: Path) -> None:
    kept = []
    for fraction in (0.34, 0.67, 1.0):
        annotations = load(manifest, f"segmentation.label_fraction={fraction}")
        rows = annotations.splits["train"].rows
        assert len(rows.sources) == len(rows.split) == len(annotations.splits["train"].cases)
        assert all(
            Path(mask).stem == f"{Path(file).stem}-mask"
            for mask, file in zip(rows.sources, rows.split.files, strict=True)
        )
        assert len(annotations.splits["val"]) == 4
        kept.append(set(rows.split.rows.tolist()))
    assert [len(each) for each in kept] == [2, 4, 6]
    assert kept[0] < kept[1] < kept[2]
    draws = {
        tuple(load(manifest, "segmentation.label_fraction=0.34", f"segmentation.label_draw={draw}")
              .splits["train"].rows.split.rows.tolist())
        for draw in range(8)
    }  # fmt: skip
    assert len(draws) == 3  # of three patients, each is drawn sometimes


def test_load_annotations__refuses_what_cannot_be_learned(manifest: Path) -> None:
    with pytest.raises(ManifestError, match=r"no mask of the 6 training images shows the class 'other'"):
        load(manifest, classes="{large: 10, small: 20, other: 30}")
    with pytest.raises(SettingsError, match="rename that class"):
        load(manifest, classes="{large: 10, macro: 20}")
    for number in range(4):
        Image.fromarray(np.zeros((28, 36), np.uint8)).save(manifest / "val" / f"{SECRET}-{number}-mask.png")
    with pytest.raises(ManifestError, match="no mask of val shows a class"):
        load(manifest)


def test_case_facts__tell_masks_apart(manifest: Path) -> None:
    settings = settings_of_run(make_settings(manifest, 2), Path("run"))
    before = case_facts(settings, load(manifest), {})
    assert before == case_facts(settings, load(manifest, "segmentation.label_fraction=0.34"), {})
    pixels = np.asarray(Image.open(manifest / "val" / f"{SECRET}-0-mask.png")).copy()
    pixels[14, 18] = 20 if pixels[14, 18] != 20 else 0
    Image.fromarray(pixels).save(manifest / "val" / f"{SECRET}-0-mask.png")
    after = case_facts(settings, load(manifest), {})
    assert after.masks_sha256 != before.masks_sha256
    assert after.splits == before.splits


def test_units_of__millimetres_only_if_every_image_states_its_spacing() -> None:
    stated, unstated = ImageGrid((4, 5), spacing=(0.2, 0.1)), ImageGrid((4, 5))
    assert units_of([stated, stated]) == OF_IMAGES
    assert units_of([stated, unstated]) == units_of([unstated]) == IN_PIXELS
    assert units_of([ImageGrid((4, 5, 6), np.eye(4), (1, 1, 1))]) == OF_VOLUMES
