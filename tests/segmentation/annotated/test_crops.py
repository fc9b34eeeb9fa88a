from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.config import RunSettings
from medmoco.data.loading.sampler import BatchKey, Share
from medmoco.evaluation.features.inputs import load_splits
from medmoco.segmentation.annotated.cases import Case, read_cases
from medmoco.segmentation.annotated.crops import CropDataset, make_crops
from medmoco.segmentation.masks.mask_rows import masked_rows
from medmoco.segmentation.masks.masks import IGNORED, Classes
from medmoco.segmentation.segment import settings_of_run
from tests.helpers.blobs import LARGE, SMALL, UNSURE, make_settings, write_blobs

CLASSES = Classes(("large", "small"), (LARGE, SMALL), UNSURE)
PLAIN = ["views.rotation=0", "views.jitter_probability=0", "views.noise_probability=0", "views.blur_probability=0"]


@pytest.fixture(scope="module", params=[2, 3])
def manifest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return write_blobs(tmp_path_factory.mktemp("blobs") / "data", request.param), request.param


def load(manifest: tuple[Path, int], *overrides: str) -> tuple[list[Case], RunSettings]:
    settings = settings_of_run(make_settings(*manifest, "segmentation.size=16", *overrides), Path("run"))
    split = load_splits(settings, ["train"])["train"]
    return list(read_cases(masked_rows(split, settings.data), CLASSES, settings.data).cases), settings


def test_make_crops__classes_follow_their_pixels(manifest: tuple[Path, int]) -> None:
    """The balls are bright: rotated, scaled and flipped, their class numbers still lie on them."""
    turned = "views.rotation=30" if manifest[1] == 2 else "views.flip_axes=[left_right, front_back]"
    cases, settings = load(manifest, "views.flip_probability=0.5", "views.jitter_probability=0", turned)
    inside = []
    for epoch in range(12):
        pixels, numbers = make_crops(cases, np.arange(len(cases)), epoch, settings)
        assert pixels.shape == (len(cases), 1, *[16] * manifest[1])
        assert numbers.shape == (len(cases), *[16] * manifest[1])
        for image, classes in zip(pixels[:, 0].astype(float), numbers, strict=True):
            if (classes == 1).sum() > 20 and (classes == 0).sum() > 20:
                inside.append(image[classes == 1].mean() - image[classes == 0].mean())
    assert len(inside) > 20
    assert min(inside) > 30
    assert np.mean(inside) > 80


def test_make_crops__unchanged_crops_are_parts_of_the_image(manifest: tuple[Path, int]) -> None:
    flips = "views.flip_probability=0"
    if manifest[1] == 3:
        flips = "views.low_resolution_probability=0"
    cases, settings = load(manifest, *PLAIN, flips, "segmentation.zoom=[1, 1]")
    pixels, numbers = make_crops(cases, np.arange(len(cases)), 0, settings)
    for case, image, classes in zip(cases, pixels[:, 0], numbers, strict=True):
        whole = np.asarray(case.canvas.pixels)
        padded = np.pad(whole, 16)
        of_classes = np.pad(case.numbers, 16)
        windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)
        found = np.argwhere((windows == image).all(axis=tuple(range(image.ndim, 2 * image.ndim))))
        assert len(found) == 1
        part = tuple(slice(at, at + side) for at, side in zip(found[0], image.shape, strict=True))
        np.testing.assert_array_equal(of_classes[part], classes)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_make_crops__foreground_is_in_the_middle_of_its_share(manifest: tuple[Path, int], share: float) -> None:
    cases, settings = load(manifest, *PLAIN, f"segmentation.foreground={share}", "segmentation.zoom=[1, 1]")
    cases = [case for case in cases if len(case.places) == 2]
    shown = {1: 0, 2: 0}
    for epoch in range(30):
        _, numbers = make_crops(cases, np.arange(len(cases)), epoch, settings)
        for classes in numbers:
            for value in shown:
                shown[value] += int((classes == value).any())
    crops = 30 * len(cases)
    if share:
        assert min(shown.values()) > 0.45 * crops
    else:
        assert shown[2] < 0.9 * crops


def test_crop_dataset__shares_join_to_the_batch_and_draws_depend_on_the_sample_only(
    manifest: tuple[Path, int],
) -> None:
    cases, settings = load(manifest)
    key = BatchKey(5, 2, np.array([3, 9, 0, 11]))
    whole = CropDataset(cases, settings, Share())[key]
    parts = [CropDataset(cases, settings, Share(rank, 2))[key] for rank in range(2)]
    for place in range(2):
        joined = np.concatenate([part.views[place].numpy() for part in parts])
        np.testing.assert_array_equal(joined, whole.views[place].numpy())
    again = CropDataset(cases, settings, Share())[BatchKey(8, 2, np.array([9]))]
    np.testing.assert_array_equal(again.views[0][0].numpy(), whole.views[0][1].numpy())
    # Sample 9 is the third of six images a second time, in another crop.
    other = CropDataset(cases, settings, Share())[BatchKey(8, 2, np.array([3]))]
    assert not np.array_equal(other.views[0].numpy(), again.views[0].numpy())
    assert (whole.step, whole.epoch, whole.samples.tolist()) == (5, 2, [3, 9, 0, 11])


def test_make_crops__what_is_ignored_stays_so(manifest: tuple[Path, int]) -> None:
    cases, settings = load(manifest, *PLAIN, "segmentation.foreground=0")
    values = {
        value
        for epoch in range(20)
        for value in np.unique(make_crops(cases, np.arange(len(cases)), epoch, settings)[1])
    }
    assert values == {0, 1, 2, IGNORED}
