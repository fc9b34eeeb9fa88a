from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.config.written import MINIMAL, refusal, write


def test_finetune__a_protocol_stands_below_the_users_keys(tmp_path: Path) -> None:
    chosen = config.load(write(tmp_path, MINIMAL + "finetune: {protocol: linear_sgd, lr: 3.0}\n")).finetune
    assert (chosen.lr, chosen.head_lr, chosen.optimizer) == (3.0, 30.0, "sgd")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluate.fractions=[0]", "'evaluate.fractions.0'"),
        ("finetune.layer_decay=0", "'finetune.layer_decay'"),
        ("detection.size=8", "'detection.size'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)
