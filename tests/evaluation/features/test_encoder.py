from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from medmoco import config
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.features.encoder import load_controls, load_encoder, sources_of
from medmoco.evaluation.features.features import Mirrored
from medmoco.evaluation.features.inputs import features_of
from medmoco.models.convert import import_weights
from medmoco.training.checkpoint import save_checkpoint
from tests.helpers import foreign
from tests.helpers.supervised import SECRET, make_settings, write_images

SMALL = {"model": {"backbone": "test_resnet"}, "views": {"size": 32}, "data": {"canvas_size": 32, "workers": 0}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "data")


def make_run(settings: config.RunSettings) -> torch.Tensor:
    """Leave a run of step 7, and return its first weights."""
    net = load_encoder("random", settings).module.net
    state = {f"query_encoder.backbone.net.{key}": value + 1 for key, value in net.state_dict().items()}
    save_checkpoint(settings.out / "checkpoints", 7, {"model": state})
    (settings.out / "config.yaml").write_text(config.to_yaml(config.as_tree(settings)))
    return next(net.parameters()) + 1


def run_of(tmp_path: Path, manifest: Path, *overrides: str) -> config.RunSettings:
    return make_settings(manifest, f"out={tmp_path / f'{SECRET}-run'}", *overrides)


# ---- where encoders come from ----


def test_load_encoder__random_depends_on_the_seed(manifest: Path) -> None:
    first, second = (load_encoder("random", make_settings(manifest, f"seed={seed}")) for seed in (0, 1))
    assert first.provenance.record() == {"kind": "random"}
    assert first.provenance.weights_sha256 != second.provenance.weights_sha256
    with pytest.raises(SettingsError, match="pass config"):
        load_encoder("random")


def test_load_encoder__a_run_with_its_own_settings_or_the_same(tmp_path: Path, manifest: Path) -> None:
    settings = run_of(tmp_path, manifest)
    weight = make_run(settings)
    encoder, alone = load_encoder(str(settings.out), settings), load_encoder(settings.out)
    torch.testing.assert_close(next(encoder.module.parameters()), weight)
    assert not encoder.module.training
    assert encoder.provenance.record() == {"kind": "run", "step": 7}
    assert encoder.provenance == alone.provenance
    assert (alone.settings, alone.folder) == (settings, settings.out)
    assert SECRET not in f"{encoder.provenance} {encoder!r} {encoder._repr_html_()}"
    larger = load_encoder(settings.out, {"evaluate": {"size": 48}})
    assert larger.preprocessing == alone.preprocessing.model_copy(update={"size": 48})


@pytest.mark.parametrize("override", ["model.backbone=resnet10t", "views.mean=0.4", "data.window=full"])
def test_load_encoder__a_run_fed_otherwise_is_refused(tmp_path: Path, manifest: Path, override: str) -> None:
    settings = run_of(tmp_path, manifest)
    make_run(settings)
    key, value = override.split("=")
    group, name = key.split(".")
    for other in (run_of(tmp_path, manifest, override), {group: {name: value if group != "views" else 0.4}}):
        with pytest.raises(SettingsError, match=key):
            load_encoder(settings.out, other)


def test_load_encoder__a_run_without_the_networks_is_refused(tmp_path: Path, manifest: Path) -> None:
    settings = run_of(tmp_path, manifest)
    make_run(settings)
    for content in ({}, {"model": {}}):
        save_checkpoint(settings.out / "checkpoints", 7, content)
        with pytest.raises(CheckpointError, match="holds no pretrained encoder"):
            load_encoder(settings.out, settings)


def test_load_encoder__a_damaged_checkpoint_is_said(tmp_path: Path, manifest: Path) -> None:
    settings = run_of(tmp_path, manifest)
    make_run(settings)
    (settings.out / "checkpoints" / "step-000000013.pt").write_bytes(b"cut off")
    said: list[str] = []
    assert load_encoder(settings.out, log=said.append).provenance.step == 7
    assert "step-000000013.pt is damaged" in said[0]


def test_load_encoder__folders_without_an_encoder(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"(?s)no config\.yaml.*no preprocessing\.json.*no import\.json"
    ) as caught:
        load_encoder(tmp_path, make_settings(manifest))
    assert len(str(caught.value).splitlines()) <= 5
    (tmp_path / "classifier.json").touch()
    with pytest.raises(CheckpointError, match="load_classifier"):
        load_encoder(tmp_path)


def test_load_encoder__a_weights_file_needs_only_what_it_does_not_say(tmp_path: Path, manifest: Path) -> None:
    torch.save({"state_dict": foreign.torchvision_resnet().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(SettingsError, match=r"(?s)a\.pth does not say how images were normalised.*config="):
        load_encoder(tmp_path / "a.pth")
    normalisation = {"mean": 0.449, "std": 0.226}
    encoder = load_encoder(tmp_path / "a.pth", {"views": normalisation})
    assert (encoder.module.name, encoder.feature_dim, encoder.preprocessing.size) == ("resnet18", 512, 224)
    assert (encoder.provenance.kind, encoder.provenance.scheme) == ("file", "plain")
    named = load_encoder(tmp_path / "a.pth", {"views": normalisation, "model": {"backbone": "resnet18"}})
    full = load_encoder(tmp_path / "a.pth", make_settings(manifest, "model.backbone=resnet18"))
    assert len({found.provenance.weights_sha256 for found in (encoder, named, full)}) == 1
    assert full.preprocessing == Preprocessing.of(full.settings)


def test_load_encoder__a_file_of_a_known_scheme_says_all(tmp_path: Path) -> None:
    torch.save(foreign.moco(foreign.torchvision_resnet(seed=0), foreign.torchvision_resnet(seed=1)), tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth")
    assert encoder.provenance.scheme == "moco"
    assert (encoder.preprocessing.mean, encoder.preprocessing.std) == (0.449, 0.226)


def test_load_encoder__a_file_of_no_known_network_must_be_named(tmp_path: Path) -> None:
    save_file({"first.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="contains no known encoder"):
        load_encoder(tmp_path / "a.safetensors")


def test_load_encoder__an_import_is_fed_as_its_source(tmp_path: Path, manifest: Path) -> None:
    torch.save(foreign.moco(foreign.torchvision_resnet(seed=0), foreign.torchvision_resnet(seed=1)), tmp_path / "a.pth")
    import_weights(tmp_path / "a.pth", tmp_path / "imported")
    encoder = load_encoder(tmp_path / "imported")
    assert (encoder.preprocessing.mean, encoder.preprocessing.std) == (0.449, 0.226)
    assert (encoder.provenance.kind, encoder.provenance.scheme) == ("import", "moco")
    assert encoder.provenance.licence == "as the source's"
    assert encoder.provenance.weights_sha256 == load_encoder(tmp_path / "a.pth").provenance.weights_sha256
    with pytest.raises(SettingsError, match=r"the import was trained with other settings.*\nviews\.mean"):
        load_encoder(tmp_path / "imported", make_settings(manifest, "model.backbone=resnet18"))
    (tmp_path / "imported" / "import.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"import\.json is damaged"):
        load_encoder(tmp_path / "imported")


def test_sources_of__an_encoder_of_another_size_keeps_it(tmp_path: Path, manifest: Path) -> None:
    settings = run_of(tmp_path, manifest)
    make_run(settings)
    usual, large = (load_encoder(settings.out, change) for change in (None, {"evaluate": {"size": 48}}))
    sources = sources_of({"usual": usual, "large": large, "text": f"{settings.out}@48"})
    assert sources == {"usual": str(settings.out), "large": f"{settings.out}@48", "text": f"{settings.out}@48"}
    with pytest.raises(SettingsError, match=r"@48: here all encoders take images of evaluate\.size"):
        load_controls(sources, settings, print)


def test_load_encoder__an_import_whose_normalisation_was_given(tmp_path: Path) -> None:
    torch.save(foreign.torchvision_resnet().state_dict(), tmp_path / "a.pth")
    import_weights(tmp_path / "a.pth", tmp_path / "imported", mean=0.3, std=0.2)
    encoder = load_encoder(tmp_path / "imported")
    assert (encoder.preprocessing.mean, encoder.preprocessing.std) == (0.3, 0.2)
    file = load_encoder(tmp_path / "imported" / "encoder.safetensors")  # the same weights, named by their file
    assert file.preprocessing == encoder.preprocessing
    with pytest.raises(SettingsError, match="together"):
        import_weights(tmp_path / "a.pth", tmp_path / "other", mean=0.3)


def test_load_controls__the_run_and_itself_untrained(tmp_path: Path, manifest: Path) -> None:
    settings = run_of(tmp_path, manifest)
    make_run(settings)
    found = load_controls({"run": str(settings.out), "none": "random"}, settings, print)
    assert list(found) == ["run", "untrained"]
    weights = [next(found[name].parameters()) for name in found]
    assert not torch.equal(*weights)
    assert list(load_controls({"run": "random"}, settings, print)) == ["untrained"]


# ---- embedding ----


@pytest.mark.parametrize("mirror", ["true", "false"])
def test_embed__is_what_evaluation_computes_to_the_last_bit(manifest: Path, mirror: str) -> None:
    settings = make_settings(manifest, f"evaluate.mirror={mirror}", "evaluate.batch_size=4")
    encoder = load_encoder("random", settings)
    split = load_manifest(settings.data, ("test",))["test"]
    module = Mirrored(encoder.module) if mirror == "true" else encoder.module
    expected = features_of({"encoder": module}, split, settings, None, print).features["encoder"]
    files = [str(file) for file in split.files]
    table = pd.DataFrame({"Path": split.table["Path"]})
    pixels = [np.asarray(Image.open(file)) for file in files]
    for images in (split, "test", files, [Path(file) for file in files], pd.Series(files), np.stack(pixels), pixels):
        found = encoder.embed(images)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(encoder.embed(table, root=manifest), expected)
    np.testing.assert_array_equal(encoder.embed(files[0]), encoder.embed([files[0]]))


def test_embed__films_of_a_manifest_by_path_are_those_of_the_split(shared: Path) -> None:
    data = shared / "data/cxr_dev"
    settings = make_settings(data, f"data.root={data}/{{split}}", "data.labels={}", "data.canvas_size=64")
    encoder = load_encoder("random", settings)
    few = load_manifest(settings.data, ("val",))["val"].select(np.arange(8))
    expected = features_of({"encoder": encoder.as_evaluated}, few, settings, None, print).features["encoder"]
    np.testing.assert_array_equal(encoder.embed(few), expected)
    np.testing.assert_array_equal(encoder.embed(few.table, root=data / "val"), expected)


def test_embed__real_dicom_files_have_features_or_a_reason(shared: Path) -> None:
    encoder = load_encoder("random", SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says how many cannot be read, which is part of the table
        found = encoder.embed(shared / "data/dicom", unreadable="nan", as_frame=True)
    features, read = found.filter(like="feature_").to_numpy(), (found["error"] == "").to_numpy()
    assert read.sum() >= 10
    assert np.isfinite(features[read]).all()
    assert np.isnan(features[~read]).all()
    assert np.ptp(features[read], 0).max() > 0.01


def test_embed__a_folder_is_all_its_images_by_name(tmp_path: Path) -> None:
    encoder = load_encoder("random", SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 30), np.uint8)
    (tmp_path / "b").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    Image.fromarray(pixels[1]).save(tmp_path / "b" / "0.jpg", quality=100)
    shutil.copy(tmp_path / "a.png", tmp_path / "c")  # known by its content
    for name in ("notes.txt", ".hidden.png", "d.json"):
        (tmp_path / name).write_text("no image")
    found = encoder.embed(tmp_path, as_frame=True)
    assert found["row"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.iloc[0, 1:], found.iloc[2, 1:])
    assert list(found) == ["row", *(f"feature_{number}" for number in range(encoder.feature_dim))]


def test_embed__frames_are_rows_of_the_manifest(manifest: Path) -> None:
    encoder = load_encoder("random", make_settings(manifest, "evaluate.where=Sick == 1"))
    assert encoder.embed("val", as_frame=True)["row"].tolist() == [3, 5, 7, 9, 11, 13]


def test_embed__a_split_by_name_needs_settings_that_name_data() -> None:
    with pytest.raises(SettingsError, match="'val' is the name of a split, but the settings name no manifest"):
        load_encoder("random", SMALL).embed("val")


def test_embed__does_not_change_the_encoder(manifest: Path) -> None:
    encoder = load_encoder("random", make_settings(manifest))
    encoder.module.train()
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    encoder.embed("test", batch_size=3, device="cpu", progress=True)
    assert encoder.module.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.module.state_dict().items())


def test_preprocess__is_the_input_of_the_module(manifest: Path) -> None:
    encoder = load_encoder("random", make_settings(manifest))
    file = next(manifest.glob("*.png"))
    with torch.inference_mode():
        features = encoder.module(torch.from_numpy(encoder.preprocess(file))[None]).numpy()
    np.testing.assert_allclose(features, encoder.embed([file]), rtol=1e-4, atol=1e-5)


def test_encoder__is_described_in_a_line_and_for_notebooks(manifest: Path) -> None:
    encoder = load_encoder("random", make_settings(manifest))
    assert repr(encoder) == (
        f"Encoder(test_resnet, {encoder.feature_dim} features of gray images of 32 x 32 pixels, random weights)"
    )
    page = replace(encoder, provenance=replace(encoder.provenance, licence="<b>"))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "canvas_size 32" in page
    json.dumps(encoder.preprocessing.model_dump(mode="json"))
