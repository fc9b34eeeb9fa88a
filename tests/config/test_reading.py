from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from medmoco.errors import SettingsError
from tests.config.written import MINIMAL, refusal, write


def test_load__defaults_file_and_command_line_in_rising_order(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {lr: 0.5, epochs: 7}\n")
    settings = config.load(file, ["train.lr=1e-3", "seed=3"])
    assert settings.train.lr == 0.001
    assert settings.train.epochs == 7
    assert settings.train.global_batch_size == 256
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
        ("train.learning_rate=1", "unknown key 'train.learning_rate'; known: epochs, global_batch_size, optimizer, lr"),
        ("method.queue_sise=1", "unknown key 'method.queue_sise'; did you mean 'method.queue_size'?"),
        ("epochs", "'epochs' is not key=value"),
        ("train.lr=[1", "not valid YAML"),
        ("train=3", "'train'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__many_mistakes_fit_in_five_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL, *(f"train.key{i}=1" for i in range(9)))
    assert "and 6 more" in message


def test_load__required_keys_are_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path, "out: a\ndata: {root: r}\n")
    assert "'data.manifest' is required: Folder with train.csv" in message


def test_load__duplicate_key_names_the_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "train:\n  lr: 1\n  epochs: 3\n  lr: 2\n")
    assert "line 6: key 'lr' is written twice" in message


def test_load__file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml does not exist"):
        config.load(tmp_path / "nowhere.yaml")
    assert "mapping" in refusal(tmp_path, "- a\n- b\n")
    assert "line 3" in refusal(tmp_path, "a: 1\nb: [1\n")


def test_load__python_objects_in_yaml_are_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal(tmp_path, "out: !!python/object/apply:os.system ['true']\n")


def test_to_yaml__reads_back_to_the_same_settings(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL), ["train.lr=1e-5", "data.labels=[A]", "train.clip_norm=1"])
    again = config.load(write(tmp_path, config.to_yaml(config.as_tree(settings))))
    assert again == settings
