"""The hand-over to nnU-Net, with its library of networks; slow tests with nnU-Net itself, where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medmoco.exporting.formats import nnunet_folder
from medmoco.exporting.subject import Subject
from tests.helpers.volume_subjects import CT, head_like, volume_subject

NAME = "nnunet/resenc_4stages_quarter"

needs_nnunet = pytest.mark.skipif(
    importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed; it is no dependency of medmoco"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    """Return an encoder and the folder that was written for it."""
    subject, folder = volume_subject(NAME), tmp_path_factory.mktemp("export")
    files = nnunet_folder.write(subject, folder)
    assert sorted(files) == sorted((folder / "nnunet").iterdir())
    return subject, folder / "nnunet"


def weights_in(folder: Path) -> dict[str, Tensor]:
    content: dict[str, dict[str, Tensor]] = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert content.keys() == {"network_weights"}
    return content["network_weights"]


def of_volumes(encoder: Callable[[Tensor], list[Tensor]], volumes: Tensor) -> Tensor:
    """Return features from nnU-Net's encoder, for which the axes are Z, Y, X."""
    return encoder(volumes.permute(0, 1, 4, 3, 2))[-1].mean((2, 3, 4))


def test_write__the_encoder_loads_strictly_and_gives_the_same_features(written: tuple[Subject, Path]) -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    subject, folder = written
    plans = json.loads((folder / "plans.json").read_text())
    given = plans["configurations"]["3d_medmoco"]["architecture"]["arch_kwargs"]
    classes = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    unet = ResidualEncoderUNet(input_channels=1, num_classes=3, **{**given, **classes})
    state = weights_in(folder)
    prefix = "encoder."
    unet.encoder.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith(prefix)})
    whole = unet.load_state_dict(state, strict=False)
    assert whole.unexpected_keys == []
    assert {name.split(".")[1] for name in whole.missing_keys} == {"seg_layers"}
    volumes = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = subject.backbone(volumes)
        found = of_volumes(unet.encoder.eval(), volumes)
        turned = unet.encoder(volumes)[-1].mean((2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (turned - expected).abs().max() > 100 * (found - expected).abs().max()  # the axes matter


def test_write__tensors_with_two_names_are_stored_once(written: tuple[Subject, Path]) -> None:
    _, folder = written
    state = weights_in(folder)
    stored = {value.untyped_storage().data_ptr(): value.numel() * value.element_size() for value in state.values()}
    assert len(stored) < len(state) / 2
    assert (folder / "checkpoint.pth").stat().st_size < 1.1 * sum(stored.values())


def test_write__the_decoder_is_the_same_each_time(written: tuple[Subject, Path], tmp_path: Path) -> None:
    subject, folder = written
    nnunet_folder.write(subject, tmp_path)
    first, second = weights_in(folder), weights_in(tmp_path / "nnunet")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(name.startswith("decoder.transpconvs.") for name in first)


def test_plans_of__have_axes_in_the_order_of_nnunet() -> None:
    plans = nnunet_folder.plans_of(volume_subject(NAME, spacing=(1.0, 2.0, 3.0)))
    own = plans["configurations"]["3d_medmoco"]
    assert own["spacing"] == [3.0, 2.0, 1.0]
    assert own["normalization_schemes"] == ["ZScoreNormalization"]
    assert "foreground_intensity_properties_per_channel" not in plans
    assert "input_channels" not in own["architecture"]["arch_kwargs"]


def test_plans_of__without_a_spacing_leaves_it_to_nnunet() -> None:
    assert "spacing" not in nnunet_folder.plans_of(volume_subject(NAME, **CT))["configurations"]["3d_medmoco"]


@pytest.mark.parametrize(("size", "patch"), [(32, 32), (33, 40), (48, 48)])
def test_plans_of__patches_fit_the_strides(size: int, patch: int) -> None:
    plans = nnunet_folder.plans_of(volume_subject(NAME, size))
    assert plans["configurations"]["3d_medmoco"]["patch_size"] == [patch] * 3


def test_plans_of__a_window_becomes_the_same_normalisation() -> None:
    """nnU-Net's CTNormalization clips to two numbers, subtracts a third and divides by a fourth."""
    subject = volume_subject(NAME, **CT)
    ((_, its),) = nnunet_folder.plans_of(subject)["foreground_intensity_properties_per_channel"].items()
    values = np.array([-1000, -160, -100.5, 40, 239, 240, 3000])
    found = (np.clip(values, its["percentile_00_5"], its["percentile_99_5"]) - its["mean"]) / its["std"]
    prepared = subject.preprocessing
    shares = np.clip((values - 40) / 400 + 0.5, 0, 1)
    np.testing.assert_allclose(found, (shares - prepared.mean) / prepared.std, rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, CT], ids=["mr", "ct"])
def test_readme__has_code_that_merges_the_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    subject = volume_subject(NAME, **settings)
    nnunet_folder.write(subject, tmp_path)
    data = tmp_path / "preprocessed" / "DatasetID_NAME"
    data.mkdir(parents=True)
    full = {"data_identifier": "x", "batch_size": 9, "preprocessor_name": "DefaultPreprocessor"}
    before = {"plans_name": "nnUNetResEncUNetMPlans", "transpose_forward": [1, 0, 2], "label_manager": "LabelManager"}
    before |= {"configurations": {"3d_fullres": full}, "foreground_intensity_properties_per_channel": {"0": {}}}
    (data / "nnUNetResEncUNetMPlans.json").write_text(json.dumps(before))
    monkeypatch.setenv("nnUNet_preprocessed", str(data.parent))
    monkeypatch.chdir(tmp_path / "nnunet")
    text = Path("README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(code, {})
    merged = json.loads((data / "medmocoPlans.json").read_text())
    assert merged["plans_name"] == "medmocoPlans"
    assert merged["configurations"].keys() == {"3d_fullres", "3d_medmoco"}
    assert merged["label_manager"] == "LabelManager"
    assert bool(merged["foreground_intensity_properties_per_channel"]["0"]) == bool(settings)
    assert ("CTNormalization" in text) == bool(settings)


def test_describe__its_code_names_what_is_there(written: tuple[Subject, Path]) -> None:
    subject, folder = written
    code = "\n".join(nnunet_folder.describe(subject)["load"])
    for name in re.findall(r'"nnunet/([\w.]+)"', code):
        assert (folder / name).is_file()


def test_refusal__other_networks() -> None:
    reason = nnunet_folder.refusal(volume_subject())
    assert reason is not None
    assert "not an encoder of nnU-Net" in reason
    assert nnunet_folder.refusal(volume_subject(NAME)) is None


# ---- nnU-Net itself ----


@needs_nnunet
@pytest.mark.slow
def test_write__nnunet_loads_it(written: tuple[Subject, Path]) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    subject, folder = written
    own = json.loads((folder / "plans.json").read_text())
    full = {"data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "spacing": [9, 9, 9]}
    plans = {"dataset_name": "D", "configurations": {"3d_fullres": full} | own.pop("configurations")} | own
    manager = PlansManager(plans)
    assert manager.image_reader_writer_class.__name__ == "NibabelIOWithReorient"
    found = manager.get_configuration("3d_medmoco")
    assert found.spacing == list(subject.preprocessing.spacing or ())[::-1]
    network = get_network_from_plans(
        found.network_arch_class_name, found.network_arch_init_kwargs, found.network_arch_init_kwargs_req_import, 1, 4,
        deep_supervision=True,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(network, str(folder / "checkpoint.pth"))
    volumes = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = of_volumes(network.eval().encoder, volumes)
        torch.testing.assert_close(features, subject.backbone(volumes), rtol=1e-4, atol=1e-5)
        assert network(volumes)[0].shape == (2, 4, 32, 32, 32)


@needs_nnunet
@pytest.mark.slow
def test_plans_of__nnunet_reads_and_normalises_as_training(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    values = np.rint(head_like((20, 30, 40))) - 160
    values[0], values[-1] = -1000, -1000  # the body is inside: nothing is cropped
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # stored as LPS
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / "a.nii.gz")
    subject = volume_subject(NAME, **{**CT, "window": (240.0, 1000.0)})
    pixels, facts = NibabelIOWithReorient().read_images([str(tmp_path / "a.nii.gz")])
    (its,) = nnunet_folder.plans_of(subject)["foreground_intensity_properties_per_channel"].values()
    found = CTNormalization(use_mask_for_norm=False, intensityproperties=its).run(pixels[0]).transpose(2, 1, 0)
    prepared = subject.preprocessing
    canvas = prepared.canvas(tmp_path / "a.nii.gz")
    ours = (canvas.pixels / 65535 - prepared.mean) / prepared.std
    assert facts["spacing"] == [1, 1, 1]
    assert ours.shape == found.shape
    np.testing.assert_allclose(found, ours, atol=1e-4)
