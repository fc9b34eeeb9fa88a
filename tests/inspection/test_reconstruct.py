from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco import config
from medmoco.errors import CheckpointError
from medmoco.inspection import reconstruct as module
from medmoco.inspection.reconstruct import reconstruct
from medmoco.plotting.pictures import Tile
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.context import RunContext
from medmoco.training.moco_task import create_state
from tests.helpers.looks import make_data, names_a_secret

DECODER = ("decoder.weight=1", "decoder.channels=32", "model.backbone=test_resnet", "method.queue_size=4")


def make_run(settings: config.RunSettings) -> Path:
    state = create_state(RunContext(settings))
    settings.out.mkdir()
    (settings.out / "config.yaml").write_text(config.to_yaml(config.as_tree(settings)))
    save_checkpoint(settings.out / "checkpoints", 3, {**state.as_content(), "step": 3})
    return settings.out


def test_reconstruct__shows_image_reconstruction_and_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_data(tmp_path, *DECODER, "decoder.empty=threshold", "decoder.threshold=0.3")
    run = make_run(settings)
    drawn: list[list[Tile]] = []
    monkeypatch.setattr(module, "write_picture", lambda tiles, _: drawn.extend(tiles))
    said = reconstruct(settings, run, tmp_path / "a.png", [2, 5]).splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["val row 2", "val row 5"]
    for truth, back, error in drawn:
        overlay = error.overlay
        assert overlay is not None
        away = np.abs(truth.pixels.astype(float) - back.pixels) / 255 / 0.25
        dark = truth.pixels < 0.25 * 255
        assert dark.any()
        assert (overlay[dark] == 0).mean() > 0.95
        bright = truth.pixels > 0.35 * 255
        # pixels at an edge weigh a little less, by interpolation
        assert (np.abs(overlay[bright] - np.minimum(away[bright], 1)) < 0.02).mean() > 0.99


def test_reconstruct__writes_a_picture_that_names_nothing(tmp_path: Path) -> None:
    settings = make_data(tmp_path, *DECODER)
    out = tmp_path / "pictures" / "a.png"
    said = reconstruct(settings, make_run(settings), out, [3])
    assert f"{out} shows images of patients: keep it where such images may be" in said
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert not names_a_secret(out)


def test_reconstruct__a_run_without_a_decoder_is_refused(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "model.backbone=test_resnet", "method.queue_size=4")
    with pytest.raises(CheckpointError, match=r"was trained without a decoder; set decoder\.weight above 0"):
        reconstruct(settings, make_run(settings), tmp_path / "a.png", [2])
    broken = make_data(tmp_path / "b", *DECODER)
    run = make_run(broken)
    save_checkpoint(run / "checkpoints", 4, {"model": {}, "step": 4})
    with pytest.raises(CheckpointError, match="step 4 does not match the run's settings"):
        reconstruct(broken, run, tmp_path / "a.png", [2])
