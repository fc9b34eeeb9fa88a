from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.symmetric=true", "set negatives to other_images"),
        ("method={name: moco_v3, batch_norm_splits: 4}", "batch_norm joined uses no groups"),
        ("method.key_momentum_end=0.5", "key_momentum_end 0.5 is below key_momentum 0.999"),
        ("positives.agree=[StudyID]", "need image=patient"),
        (
            "positives={image: patient, agree: [StudyID], differ: [StudyID]}",
            "StudyID cannot be in both agree and differ",
        ),
        ("train.optimizer=rmsprop", "'train.optimizer'"),
        ("method.key_momentum=1", "'method.key_momentum'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decoder.contrast=0", "weight and contrast are both 0, so nothing would be trained"),
        ("decoder.empty=threshold", "empty threshold needs a decoder; set weight above 0"),
        ("decoder={weight: 1, empty: mask}", "set both or neither"),
        ("decoder={weight: 1, mask: Mask}", "set both or neither"),
        ("decoder.empty_weight=2", "'decoder.empty_weight'"),
    ],
)
def test_decoder__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_decoder__an_autoencoder_predicts_nothing(tmp_path: Path) -> None:
    alone = ["decoder={weight: 1, contrast: 0}", "method.queue_size=0"]
    config.load(write(tmp_path, MINIMAL), alone)
    assert "method.predictor has no effect" in refusal(tmp_path, MINIMAL, *alone, "method.name=moco_v3")
