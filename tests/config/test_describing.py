from __future__ import annotations

from pathlib import Path

import yaml

from medmoco import config
from tests.helpers.written import MINIMAL, write


def test_describe__is_yaml_and_names_the_source_of_each_value(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {epochs: 7}\nviews: {recipe: moco_v1}\n")
    text = config.describe(file, ["train.lr=0.5"])
    lines = {line.split(":")[0].strip(): line for line in reversed(text.splitlines())}  # the first of its name
    assert "# command line" in lines["lr"]
    assert "settings.yaml" in lines["epochs"]
    assert "# preset of views.recipe" in lines["jitter_probability"]
    assert "# default: He et al. 2020" in lines["global_batch_size"]
    assert config.RunSettings.model_validate(yaml.safe_load(text)) == config.load(file, ["train.lr=0.5"])


def test_describe__names_the_file_for_what_a_merge_key_gives(tmp_path: Path) -> None:
    text = config.describe(write(tmp_path, MINIMAL + "train: &t {epochs: 7}\nfinetune: {<<: *t, lr: 0.5}\n"))
    finetune = text[text.index("\nfinetune:") :]
    assert "settings.yaml" in next(line for line in finetune.splitlines() if line.startswith("  epochs: 7"))


def test_describe__odd_names_of_labels_are_quoted(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    text = config.describe(file, ["data.labels=['No', 'a: b', '# c', '1e5']"])
    assert set(yaml.safe_load(text)["data"]["labels"]) == {"No", "a: b", "# c", "1e5"}
