from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmoco import config
from medmoco.errors import SettingsError
from tests.helpers.written import MINIMAL, refusal, write

SPACE = """
tune:
  space:
    train.lr: {low: 3e-3, high: 0.3, log: true}
    views.crop_scale: [[0.2, 1.0], [0.5, 1.0]]
"""


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


def test_space__choices_and_ranges_survive_the_way_through_yaml(tmp_path: Path) -> None:
    space = config.load(write(tmp_path, MINIMAL + SPACE)).tune.space
    assert space["train.lr"] == config.Range(low=0.003, high=0.3, log=True)
    assert space["views.crop_scale"] == ([0.2, 1.0], [0.5, 1.0])
    again = config.load(write(tmp_path, config.to_yaml(config.as_tree(config.load(tmp_path / "settings.yaml")))))
    assert again.tune.space == space


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tune.space={train.lr: 0.1}", "give train.lr a list of choices, or {low: ..., high: ..., log: true}"),
        ("tune.space={train.lr: {low: 0.1}}", "give train.lr a list of choices"),
        ("tune.space={train.lr: {low: 0.1, high: 0.1}}", "low 0.1 must be below high 0.1"),
        ("tune.space={train.lr: {low: 0, high: 0.1, log: true}}", "and above 0"),
        ("tune.space={train.lr: []}", "give train.lr a list of choices"),
        ("tune.trials=0", "'tune.trials'"),
    ],
)
def test_space__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("possible", "words"),
    [
        ([], "give train.lr a list of choices"),
        (5, "give train.lr a list of choices"),
        ({"low": "a", "high": 2}, "'tune.space.train.lr.low': 'a' is not a number"),
        ({"low": 2, "high": 1}, "low 2 must be below high 1"),
    ],
)
def test_space__says_one_thing_of_what_is_wrong(possible: object, words: str) -> None:
    text = f"tune.space={json.dumps({'train.lr': possible})}"
    with pytest.raises(SettingsError) as caught:
        config.load(None, ["out=a", "data.manifest=m", "data.root=r", text])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
