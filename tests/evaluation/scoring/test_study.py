"""Which encoders and splits are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medmoco.config import RunSettings, as_tree, load, to_yaml
from medmoco.errors import CheckpointError, ManifestError, SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.scoring.study import begin
from medmoco.models.moco import create_moco
from medmoco.training.checkpoint import save_checkpoint
from tests.helpers.squares import SMALL, write_images


@pytest.fixture
def real(tmp_path: Path) -> Callable[..., RunSettings]:
    write_images(tmp_path, {"train": 20, "val": 10, "test": 10})
    paths = [f"out={tmp_path / 'run'}", f"data.manifest={tmp_path}", f"data.root={tmp_path / 'images'}"]
    return lambda *more: load(None, [*paths, *SMALL, "model.backbone=resnet10t", *more])


def write_run(folder: Path, settings: RunSettings) -> None:
    """A run folder as pretraining leaves it, of a network that is not the untrained one."""
    backbone = load_encoder("random", settings.model_copy(update={"seed": 5})).module
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(as_tree(settings)))
    model = create_moco(backbone, settings.method.model_copy(update={"queue_size": 16}), seed=0)
    save_checkpoint(folder / "checkpoints", 7, {"model": model.state_dict(), "step": 7})


def test_begin__another_run_brings_its_own_network(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    settings = real()
    write_run(tmp_path / "small", settings)
    write_run(tmp_path / "large", real("model.backbone=resnet18"))
    study = begin(settings, {"run": str(tmp_path / "small"), "large": str(tmp_path / "large")}, test=False)
    assert study.encoders == ["run", "large", "untrained", "pixels"]
    assert study.backbones["large"].name == "resnet18"
    assert study.source.record() == {"kind": "run", "step": 7}
    assert {name: found["val"].shape for name, found in study.features.items()} == {
        "run": (10, 512), "large": (10, 512), "untrained": (10, 512), "pixels": (10, 1024),
    }  # fmt: skip
    with pytest.raises((SettingsError, CheckpointError)):
        begin(settings, {"run": str(tmp_path / "large")}, test=False)  # the first is what the settings say


def test_begin__a_weights_file_is_of_the_settings_network(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    settings = real()
    backbone = load_encoder("random", settings).module
    save_file(backbone.net.state_dict(), tmp_path / "weights.safetensors")
    study = begin(settings, {"run": "random", "file": str(tmp_path / "weights.safetensors")}, test=True)
    assert study.encoders == ["file", "untrained", "pixels"]
    assert study.encoder == str(tmp_path / "weights.safetensors")
    assert study.scored == ["val", "test"]
    np.testing.assert_array_equal(study.features["file"]["test"], study.features["untrained"]["test"])
    assert all(isinstance(value, torch.nn.Module) for value in study.backbones.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.labels={}"], "or evaluate.classes or evaluate.targets"),
        (["evaluate.classes=Klass"], "evaluate.classes: train.csv has no column 'Klass'"),
        (["evaluate.targets=[Brightt]"], "evaluate.targets: train.csv has no column 'Brightt'; did you mean 'Bright'"),
    ],
)
def test_begin__refuses_columns_that_are_not_there(
    real: Callable[..., RunSettings], more: list[str], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        begin(real(*more), {"run": "random"}, test=False)
    assert message in str(caught.value)


def test_begin__names_that_tables_need_are_refused(real: Callable[..., RunSettings], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'training mean' is the name of a control"):
        begin(real("evaluate.targets=[Bright]"), {"training mean": "random"}, test=False)
    for file in tmp_path.glob("*.csv"):
        file.write_text(file.read_text().replace(",1\n", ",macro\n"))
    with pytest.raises(ManifestError, match="'macro' is the mean over classes"):
        begin(real("evaluate.classes=Bright"), {"run": "random"}, test=False)


def test_begin__reads_classes_and_numbers_of_every_split(real: Callable[..., RunSettings]) -> None:
    study = begin(real("evaluate.classes=Bright", "evaluate.targets=[Bright]"), {"run": "random"}, test=True)
    for name, split in study.splits.items():
        assert split.label_names == ("0", "1")
        np.testing.assert_array_equal(study.values["Bright"][name], split.labels[:, 1])
