from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.config import RunSettings
from medmoco.data.loading.loading import canvas_reader, check_images
from medmoco.data.manifest.manifest import load_manifest
from medmoco.training.sizes import check_sizes
from medmoco.training.synthetic import on_phantoms
from tests.helpers.packs import settings_for


@pytest.mark.parametrize("channels", ["gray", "rgb", [1, 2]])
def test_on_phantoms__is_data_for_any_settings(tmp_path: Path, channels: object) -> None:
    overrides = ("train.global_batch_size=8", "method.queue_size=64", "data.canvas_size=48")
    given: RunSettings = settings_for(tmp_path, *overrides)
    update = {"channels": channels, "pack": "gone", "where": "Age > 1", "labels": {"Gone": None}}
    given = given.model_copy(update={"data": given.data.model_copy(update=update)})
    said: list[str] = []
    with on_phantoms(given, said.append, side=64) as settings:
        split = check_images(load_manifest(settings.data, ("train",))["train"], settings.data)
        check_sizes(len(split), settings)
        assert len(split) == 72
        assert len(set(split.patients)) == 36
        canvases, _ = canvas_reader(split, settings.data)([0, 1, 71])
        assert [canvas.pixels.shape[:2] for canvas in canvases] == [(48, 48)] * 3
        folder = Path(settings.data.manifest)
    assert said == ["drawing synthetic films of 64 x 64 pixels"]
    assert not folder.exists()
