from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.written import MINIMAL, refusal


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.symmetric=true", "set negatives to other_images"),
        ("method={name: moco_v3, queue_sharded: true}", "queue_size 0 has none"),
        ("method={name: moco_v3, batch_norm_splits: 4}", "batch_norm joined has no groups"),
        ("method.key_momentum_end=0.5", "key_momentum_end 0.5 is below key_momentum 0.999"),
        ("positives.agree=[StudyID]", "set image=patient"),
        ("positives={image: patient, agree: [StudyID], differ: [StudyID]}", "StudyID cannot both agree and differ"),
        ("train.optimizer=rmsprop", "'train.optimizer'"),
        ("method.key_momentum=1", "'method.key_momentum'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)
