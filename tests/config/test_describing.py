from __future__ import annotations

from pathlib import Path

import yaml

from medmoco import config
from tests.config.written import MINIMAL, write


def test_describe__is_yaml_and_names_the_source_of_each_value(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {epochs: 7}\nviews: {recipe: moco_v1}\n")
    text = config.describe(file, ["train.lr=0.5"])
    lines = {line.split(":")[0].strip(): line for line in reversed(text.splitlines())}  # the first of its name
    assert "# command line" in lines["lr"]
    assert "settings.yaml" in lines["epochs"]
    assert "# preset of views.recipe" in lines["jitter_probability"]
    assert "# default: He et al. 2020" in lines["global_batch_size"]
    assert config.RunSettings.model_validate(yaml.safe_load(text)) == config.load(file, ["train.lr=0.5"])
