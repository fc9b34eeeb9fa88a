from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medmoco import config
from medmoco.errors import SettingsError

MINIMAL = "out: runs/a\ndata: {manifest: m, root: r}\n"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        config.load(write(tmp_path, text), overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert caught.value.exit_code == 2
    return message


def test_load__defaults_file_and_command_line_in_rising_order(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {lr: 0.5, epochs: 7}\n")
    settings = config.load(file, ["train.lr=1e-3", "seed=3"])
    assert settings.train.lr == 0.001
    assert settings.train.epochs == 7
    assert settings.train.global_batch_size == 256
    assert settings.seed == 3


def test_load__numbers_as_people_write_them(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {lr: 1e-3, weight_decay: 2E-4, clip_norm: .5}\n")
    train = config.load(file).train
    assert (train.lr, train.weight_decay, train.clip_norm) == (0.001, 0.0002, 0.5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=true", "'train.epochs': True is not a number"),
        ("train.epochs=2.5", "'train.epochs'"),
        ("train.epochs=ten", "'train.epochs': 'ten' is not a number"),
        ("train.lr=0", "'train.lr'"),
        ("train.optimizer=lars", "'train.optimizer'"),
        ("views.crop_scale=[0.9, 0.1]", "crop_scale [0.9, 0.1] is not [low, high]"),
        ("views.crop_scale=[0, 1]", "crop_scale must be above 0"),
        ("method.key_momentum=1", "'method.key_momentum'"),
        ("method.batch_norm_splits=3", "method.batch_norm_splits 3 must split train.global_batch_size 256"),
        ("train.warmup_epochs=500", "train.warmup_epochs 500 must be below train.epochs"),
        ("finetune.epochs=1", "finetune.warmup_epochs 1 must be below finetune.epochs"),
        ("data.labels={A: {uncertain: maybe}}", "'data.labels.A.uncertain'"),
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
        ("train.learning_rate=1", "unknown key 'train.learning_rate'; known: epochs, global_batch_size, optimizer, lr"),
        ("method.queue_sise=1", "unknown key 'method.queue_sise'; did you mean 'method.queue_size'?"),
        ("data.labels={A: {unsure: one}}", "unknown key 'data.labels.A.unsure'"),
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


def test_load__labels_as_list_or_mapping_and_replaced_as_a_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "out: a\ndata: {manifest: m, root: r, labels: [A, B]}\n")
    assert config.load(file).data.labels == {"A": config.LabelPolicy(), "B": config.LabelPolicy()}
    changed = config.load(file, ["data.labels={C: {uncertain: one}}"]).data.labels
    assert changed == {"C": config.LabelPolicy(uncertain="one")}


def test_load__presets_stand_below_the_users_keys(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "views: {recipe: moco_v2, rotation: 5.0}\nmethod: {name: moco_v1}\n")
    settings = config.load(file)
    assert settings.views.crop_scale == (0.2, 1.0)
    assert settings.views.rotation == 5.0
    assert (settings.method.temperature, settings.method.projector) == (0.07, "linear")


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, (_, choices) in config.RunSettings.PRESETS.items() for name in choices]
)
def test_presets__are_valid(tmp_path: Path, group: str, name: str) -> None:
    selector = config.RunSettings.PRESETS[group][0]
    config.load(write(tmp_path, MINIMAL), [f"{group}.{selector}={name}"])


def test_settings__are_frozen(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        settings.train.lr = 1.0


def test_to_yaml__reads_back_to_the_same_settings(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL), ["train.lr=1e-5", "data.labels=[A]", "train.clip_norm=1"])
    again = config.load(write(tmp_path, config.to_yaml(config.as_tree(settings))))
    assert again == settings


def test_describe__is_yaml_and_names_the_source_of_each_value(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {epochs: 7}\nviews: {recipe: moco_v1}\n")
    text = config.describe(file, ["train.lr=0.5"])
    lines = {line.split(":")[0].strip(): line for line in reversed(text.splitlines())}  # the first of its name
    assert "# command line" in lines["lr"]
    assert "settings.yaml" in lines["epochs"]
    assert "# preset of views.recipe" in lines["jitter_probability"]
    assert "# default: He et al. 2020" in lines["global_batch_size"]
    assert config.RunSettings.model_validate(yaml.safe_load(text)) == config.load(file, ["train.lr=0.5"])
