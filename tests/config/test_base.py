from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=true", "'train.epochs': True is not a number"),
        ("train.epochs=2.5", "'train.epochs'"),
        ("train.epochs=ten", "'train.epochs': 'ten' is not a number"),
        ("train.lr=0", "'train.lr'"),
        (f"train.epochs={10**30}", f"'train.epochs': {10**30} is too large for a 64-bit integer"),
        ("train.hang_seconds=1e300", "'train.hang_seconds': Input should be less than or equal to 10000000"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__numbers_as_people_write_them(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {lr: 1e-3, weight_decay: 2E-4, clip_norm: .5}\n")
    train = config.load(file).train
    assert (train.lr, train.weight_decay, train.clip_norm) == (0.001, 0.0002, 0.5)


def test_settings__are_frozen(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        settings.train.lr = 1.0
