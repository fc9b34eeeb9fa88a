from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.errors import CheckpointError
from medmoco.reporting.trained.results import read_trained
from tests.helpers.made_segmentation import make_segmentation_run


def test_read_trained__says_what_was_trained(run_folder: Path, tmp_path: Path) -> None:
    folder = make_segmentation_run(run_folder, tmp_path / "masks")
    found = read_trained(folder, [])
    assert found
    assert (found.network, found.split) == ("segmentation network", "test")
    assert {score.encoder for score in found.scores} == {"run", "from scratch"}
    assert read_trained(run_folder, [{"step": 1, "val_auroc": 0.8}]) is None
    unfinished = read_trained(tmp_path, [{"step": 1}, {"val_ap": 0.1}])
    assert unfinished
    assert (unfinished.network, unfinished.scores) == ("detector", ())


def test_read_trained__refuses_damaged_scores(run_folder: Path, tmp_path: Path) -> None:
    folder = make_segmentation_run(run_folder, tmp_path / "masks")
    (folder / "scores.json").write_text("[{}]")
    with pytest.raises(CheckpointError, match=r"masks/scores\.json is damaged"):
        read_trained(folder, [])
