from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.batch_norm_splits=3", "method.batch_norm_splits 3 must divide train.global_batch_size 256"),
        ("train.warmup_epochs=500", "train.warmup_epochs 500 must be below train.epochs"),
        ("finetune.epochs=1", "finetune.warmup_epochs 1 must be below finetune.epochs"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__keys_of_patients_are_not_pushed_away_from_their_other_images(tmp_path: Path) -> None:
    said = refusal(tmp_path, MINIMAL, "positives.image=patient", "method.negatives=other_images")
    assert "set method.negatives to other_patients or all" in said
    config.load(write(tmp_path, MINIMAL), ["positives.image=patient", "method.negatives=other_patients"])


def test_load__presets_stand_below_the_users_keys(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "views: {recipe: moco_v2, rotation: 5.0}\nmethod: {name: moco_v1}\n")
    settings = config.load(file)
    assert settings.views.crop_scale == (0.2, 1.0)
    assert settings.views.rotation == 5.0
    assert (settings.method.temperature, settings.method.projector) == (0.07, "linear")


_VOLUMES = ["data.dimensions=3", "data.window=[40, 400]", "views.recipe=ct"]


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, (_, choices) in config.RunSettings.PRESETS.items() for name in choices]
)
def test_presets__are_valid(tmp_path: Path, group: str, name: str) -> None:
    selector = config.RunSettings.PRESETS[group][0]
    volumes = ["data.dimensions=3", "data.window=percentiles"] if name in config.VOLUME_RECIPES else []
    config.load(write(tmp_path, MINIMAL), [f"{group}.{selector}={name}", *volumes])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["views.hue=0.1"], "views.hue needs colour images, but data.channels is gray"),
        (["data.channels=5", "views.grayscale_probability=0.2"], "needs colour images, but data.channels is 5"),
        (["data.channels=rgb", "views.mean=[0.1, 0.2]"], "views.mean has 2 numbers for 3 channels"),
        (["data.scale=log"], "need bands"),
        (["data.dimensions=3"], "volumes need a window"),
        (["data.dimensions=3", "data.window=[40, 400]"], "views.recipe xray is for images; with data.dimensions 3"),
        (["views.recipe=ct"], "views.recipe ct is for volumes; set data.dimensions to 3"),
        ([*_VOLUMES, "data.channels=3"], "channels 3 applies to images"),
        ([*_VOLUMES, "data.canvas_size=300"], "canvas_size applies to images"),
        (["data.spacing=[1, 1, 3]"], "spacing applies to volumes"),
        (["data.window=percentiles"], "window percentiles applies to volumes"),
        (["data.channels=blue"], "'data.channels': 'blue' is not gray, rgb or a number of bands"),
        (["data.channels=0"], "'data.channels': 0 is not gray"),
        (["data.channels=3", "data.band_ranges=[[0, 1], [0, 2]]"], "band_ranges has 2 pairs for 3 channels"),
        (["data.channels=3", "data.scale=log", "data.band_ranges=[[0, 1]]"], "with 0 < low < high"),
        (["data.channels=3", "data.window=full"], "bands, use band_ranges"),
    ],
)
def test_channels__what_does_not_go_together_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL, *overrides)


def test_channels__recipes_have_their_colours_where_the_data_has() -> None:
    def views(*overrides: str) -> tuple[float, float, float]:
        found = config.load(None, ["out=o", "data.manifest=m", "data.root=r", *overrides]).views
        return found.saturation, found.hue, found.grayscale_probability

    assert views("views.recipe=moco_v2") == (0, 0, 0)
    assert views("views.recipe=moco_v2", "data.channels=rgb") == (0.4, 0.1, 0.2)
    assert views("views.recipe=moco_v1", "data.channels=rgb", "views.hue=0.2") == (0.4, 0.2, 0.2)
    assert views("data.channels=rgb") == (0, 0, 0)


def test_retired__a_key_of_an_old_run_loads_at_its_default_alone(
    tmp_path: Path,
) -> None:
    old = MINIMAL + "method: {queue_size: 32, queue_sharded: false}\n"
    assert config.load(write(tmp_path, old)) == config.load(write(tmp_path, MINIMAL), ["method.queue_size=32"])
    message = refusal(tmp_path, MINIMAL, "method.queue_sharded=true")
    assert "method.queue_sharded was removed: every process now holds the whole queue" in message
    assert "Delete the key." in message
