"""Which encoders and splits are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medmoco.config import RunSettings, as_tree, load, to_yaml
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import CheckpointError, ManifestError, SettingsError
from medmoco.evaluation.features import inputs
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.scoring import study as module
from medmoco.evaluation.scoring.study import begin
from medmoco.models.convert import import_weights
from medmoco.models.moco import create_moco
from medmoco.training.checkpoint import save_checkpoint
from medmoco.utils.files import sha256_of
from tests.helpers import foreign
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


# ---- controls with a preprocessing of their own ----


@pytest.fixture(scope="module")
def moco_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("moco") / "w.pth.tar"
    torch.save(foreign.moco(foreign.torchvision_resnet(seed=0), foreign.torchvision_resnet(seed=1)), file)
    import_weights(file, file.parent / "imported")
    return file


@pytest.mark.slow
def test_begin__controls_have_their_own_network_normalisation_and_size(
    real: Callable[..., RunSettings], tmp_path: Path, moco_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = real("data.canvas_size=40")
    write_run(tmp_path / "run", settings)
    imported, passes = moco_file.parent / "imported", list[list[str]]()
    counted = module.features_of

    def count(modules: Mapping[str, torch.nn.Module], *rest: Any) -> Any:
        passes.append(list(modules))
        return counted(modules, *rest)

    monkeypatch.setattr(module, "features_of", count)
    sources = {"run": str(tmp_path / "run"), "folder": str(imported), "file": str(moco_file), "large": f"{imported}@64"}
    found = begin(settings, sources, test=False)
    assert found.encoders == ["run", "folder", "file", "large", "untrained", "pixels"]
    # one pass over each split for encoders whose images are prepared alike
    assert sorted(map(tuple, passes)) == sorted([("run", "untrained", "pixels"), ("folder", "file"), ("large",)] * 2)
    assert {name: own.input for name, own in found.others.items()} == {
        "folder": "32 x 32 pixels, mean 0.449, std 0.226",
        "file": "32 x 32 pixels, mean 0.449, std 0.226",
        "large": "64 x 64 pixels, mean 0.449, std 0.226",
    }
    assert found.notes[:3] == [f"{name}: images of {own.input}" for name, own in found.others.items()]
    files = [tmp_path / "images" / name for name in found.splits["val"].table["Path"]]
    for name, size, canvas in (("folder", 32, 40), ("file", 32, 40), ("large", 64, 64)):
        change = {"views": {"size": size}, "data": {"canvas_size": canvas}}
        alone = load_encoder(imported, change).embed(files, batch_size=16)
        np.testing.assert_array_equal(found.features[name]["val"], alone)
    without = begin(settings, {"run": str(tmp_path / "run")}, test=False)
    for name in without.encoders:
        np.testing.assert_array_equal(found.features[name]["val"], without.features[name]["val"])
    assert not without.others


@pytest.mark.slow
def test_begin__hashes_each_file_once_for_all_encoders(
    real: Callable[..., RunSettings], tmp_path: Path, moco_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, hashed = real("data.canvas_size=40"), list[Path]()
    write_run(tmp_path / "run", settings)
    monkeypatch.setattr(inputs, "sha256_of", lambda file: hashed.append(file) or sha256_of(file))
    sources = {"run": str(tmp_path / "run"), "file": str(moco_file), "large": f"{moco_file}@64"}
    found = begin(settings, sources, test=False)
    assert sorted(map(str, hashed)) == sorted(str(file) for split in found.splits.values() for file in split.files)


@pytest.mark.slow
def test_begin__a_control_larger_than_the_canvases_of_a_pack_is_read_from_the_files(
    real: Callable[..., RunSettings], tmp_path: Path, moco_file: Path
) -> None:
    make_pack(real().data, tmp_path / "pack", lambda _: None)
    files, packed = (real("model.backbone=resnet18", *more) for more in ([], [f"data.pack={tmp_path / 'pack'}"]))
    sources = {"run": str(moco_file), "small": f"{moco_file}@40", "large": f"{moco_file}@64"}
    plain, found = (begin(settings, sources, test=False) for settings in (files, packed))
    for name in sources:
        np.testing.assert_array_equal(found.features[name]["val"], plain.features[name]["val"])
    (tmp_path / "images" / found.splits["val"].table["Path"].iloc[0]).unlink()
    del sources["large"]
    begin(packed, sources, test=False)
    with pytest.raises(ManifestError, match=r"val\.csv: 1 of 10 val files do not exist"):
        begin(packed, {"run": str(moco_file), "large": f"{moco_file}@64"}, test=False)


@pytest.mark.slow
def test_begin__a_control_of_unknown_normalisation_has_that_of_the_settings(
    real: Callable[..., RunSettings], tmp_path: Path
) -> None:
    net = foreign.torchvision_resnet()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    settings = real()
    write_run(tmp_path / "run", settings)
    found = begin(settings, {"run": str(tmp_path / "run"), "other": str(tmp_path / "resnet18.pth")}, test=False)
    assert found.backbones["other"].name == "resnet18"
    assert "other" not in found.others
    assert found.notes[0].startswith("other: it is not known how images were normalised for it")
    np.testing.assert_allclose(
        found.features["other"]["val"][:1],
        load_encoder(tmp_path / "resnet18.pth", real("model.backbone=resnet18")).embed(
            [tmp_path / "images" / found.splits["val"].table["Path"].iloc[0]]
        ),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("sources", [{"run": "random@64"}, {"first": "{file}@64"}, {"a": "{file}", "b": "random@64"}])
def test_begin__the_first_encoder_has_the_size_of_the_settings(
    real: Callable[..., RunSettings], sources: dict[str, str], moco_file: Path
) -> None:
    named = {name: source.format(file=moco_file) for name, source in sources.items()}
    with pytest.raises(SettingsError, match=r"evaluate\.size, which is 32;\nset evaluate\.size=64"):
        begin(real("model.backbone=resnet18"), named, test=False)


def test_begin__a_size_that_no_view_has_is_refused_by_its_source(
    real: Callable[..., RunSettings], moco_file: Path
) -> None:
    sources = {"run": str(moco_file), "small": f"{moco_file}@7"}
    with pytest.raises(SettingsError, match=r"@7: the number after @ is the side(?s:.*)'views\.size': .* 16"):
        begin(real("model.backbone=resnet18"), sources, test=False)
