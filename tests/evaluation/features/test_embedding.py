from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmoco.errors import CheckpointError, ImageError, SettingsError
from medmoco.evaluation.features.encoder import Encoder, load_encoder

SECRET = "DOE-JANE"


@pytest.fixture(params=[0, 2])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    workers = request.param
    return load_encoder("random", {
        "model": {"backbone": "test_resnet"}, "views": {"size": 32}, "data": {"canvas_size": 32, "workers": workers},
        "train": {"device": "cpu"}, "evaluate": {"batch_size": 3},
    })  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Seven files, of which the second is missing and the sixth cut off."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{SECRET}-{number}.png" for number in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).save(path)
    paths[1].unlink()
    paths[5].write_bytes(paths[5].read_bytes()[:200])
    return paths


def test_compute__refuses_the_first_batch_with_an_unreadable_image(encoder: Encoder, files: list[Path]) -> None:
    with pytest.raises(ImageError, match="1 of the first 3 images") as caught:
        encoder.embed(files)
    assert "\nimage 1: the file does not exist" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_compute__lists_no_more_than_a_few(encoder: Encoder, files: list[Path]) -> None:
    with pytest.raises(ImageError, match="5 of the first 5 images") as caught:
        encoder.embed([files[1]] * 5, batch_size=5)
    assert len(str(caught.value).splitlines()) <= 5


def test_compute__leaves_nan_for_what_cannot_be_read_and_nothing_else_changes(
    encoder: Encoder, files: list[Path]
) -> None:
    with pytest.warns(UserWarning, match=r"2 of 7 images cannot be read and have NaN: 1, 5 \(counted from 0\)") as told:
        found = encoder.embed(files, unreadable="nan", as_frame=True)
    assert SECRET not in str(told[0].message) + found["error"].sum()
    assert [bool(reason) for reason in found["error"]] == [False, True, False, False, False, True, False]
    assert "truncated" in found["error"][5]
    values = found.filter(like="feature_").to_numpy()
    assert np.isnan(values).all(1).tolist() == [False, True, False, False, False, True, False]
    whole = [files[at] for at in (0, 0, 2, 3, 4, 4, 6)]  # batches of the same images, but for what is unreadable
    good = [0, 2, 3, 4, 6]
    np.testing.assert_array_equal(values[good], encoder.embed(whole)[good])


def test_compute__arrays_that_are_no_images_are_unreadable_too(encoder: Encoder, files: list[Path]) -> None:
    with pytest.warns(UserWarning, match="1 of 2"):
        found = encoder.embed([files[0], np.zeros(3)], unreadable="nan", as_frame=True)
    assert "is not an image" in found["error"][1]


def test_compute__features_that_are_not_finite_are_refused(encoder: Encoder, files: list[Path]) -> None:
    torch.nn.init.constant_(next(encoder.module.parameters()), float("nan"))
    with pytest.raises(CheckpointError, match=r"not finite for 2 of 2 rows of images \(counted from 0\), first row 0"):
        encoder.embed([files[0], files[2]])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"unreadable": "skip"}, "neither 'raise' nor 'nan'"),
        ({"batch_size": 0}, "batch_size=0 is not a positive number"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
)
def test_compute__refuses_options_that_are_none(
    encoder: Encoder, files: list[Path], given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        encoder.embed([files[0]], **given)


def test_compute__nothing_to_read_is_refused(encoder: Encoder) -> None:
    with pytest.raises(SettingsError, match="there are no images"):
        encoder.embed([])
