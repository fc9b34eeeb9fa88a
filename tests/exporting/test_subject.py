from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from monai.networks import nets
from safetensors.torch import load_file
from torch import nn

from medmoco import config
from medmoco.errors import CheckpointError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.exporting.export import FORMATS
from medmoco.exporting.subject import (
    Subject,
    _build_of_volumes,
    classifier_name,
    save_state,
    subject_of,
)
from medmoco.models.networks.volumes import NETWORKS, build_volume_network, named_as_built
from tests.helpers.volume_subjects import volume_subject

IMAGES = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def make_settings(*overrides: str) -> config.RunSettings:
    given = ["out=run", "data.manifest=data", "data.root=data", "model.backbone=resnet10t", "views.size=32"]
    return config.load(None, [*given, *overrides])


@pytest.fixture(scope="module", params=[(False, None), (True, None), (True, 2)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a classifier folder, of labels that exclude each other or not, of pooled features or of patches."""
    exclusive, top_patches = request.param
    settings = make_settings(
        "evaluate.mirror=true", "data.window=[40, 400]", "data.labels=[A, B]", "model.backbone=test_vit"
    )
    encoder = subject_of(load_encoder("random", settings))
    torch.manual_seed(3)
    classifier = ClassifierNetwork(
        encoder.backbone, nn.Linear(encoder.backbone.feature_dim, 2), mirror=True, exclusive=exclusive,
        top_patches=top_patches,
    )  # fmt: skip
    facts = describe_classifier(
        settings, ("A", "B"), trained="fine-tuned", encoder={"kind": "random"}, val_auroc={"A": 0.7, "B": None},
        calibration={
            "A": {"kind": "platt", "slope": 1.5, "intercept": -0.5}, "B": {"kind": "none", "slope": 1, "intercept": 0},
        },
        operating_points={"A": [], "B": []}, exclusive=exclusive, top_patches=top_patches,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("run") / "classifier"
    save_classifier(place, classifier.eval(), facts)
    return place


def test_from_encoder__is_fed_as_it_is_scored() -> None:
    subject = subject_of(load_encoder("random", make_settings("evaluate.size=48", "evaluate.mirror=true")))
    assert (subject.preprocessing.size, subject.preprocessing.mirror) == (48, True)
    assert (subject.stem, subject.outputs, subject.licence) == ("encoder", ("features",), "not stated")
    assert not subject.backbone.training
    assert not any(parameter.requires_grad for parameter in subject.backbone.parameters())
    assert subject_of(load_encoder("random", make_settings())).preprocessing.size == 32


def test_from_classifier__is_fed_as_it_was_trained(folder: Path) -> None:
    subject = subject_of(load_classifier(folder))
    assert (subject.preprocessing.size, subject.preprocessing.mirror) == (32, True)
    assert subject.preprocessing.window == (40, 400)
    assert subject.stem == "classifier"
    assert subject.outputs == ("logits", "probabilities", "patch_scores")[: 2 if subject.top_patches is None else 3]


def test_graph_network__is_the_classifier_that_predicts(folder: Path) -> None:
    loaded = load_classifier(folder)
    classifier = loaded.module
    with torch.inference_mode():
        logits, probabilities, *patches = subject_of(load_classifier(folder)).graph(IMAGES)
        scores = classifier(IMAGES)
        if classifier.top_patches:
            torch.testing.assert_close(patches[0], classifier.score_patches(IMAGES))
    torch.testing.assert_close(logits, scores)
    expected = loaded.probabilities(scores.double().numpy())
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-6)


def test_refusal__of_patches_by_what_holds_weights_alone(folder: Path) -> None:
    subject = subject_of(load_classifier(folder))
    refused = {name for name, form in FORMATS.items() if "head scores patches" in (form.refusal(subject) or "")}
    plain = {"safetensors", "timm", "huggingface", "monai-bundle"}  # torchvision has no such network at all
    assert refused == (plain if subject.top_patches else set())
    labels = subject.build["arguments"]["num_classes"]
    assert labels == (0 if subject.top_patches else 2)


def test_graph_network__an_encoder_is_not_mirrored() -> None:
    subject = subject_of(load_encoder("random", make_settings("evaluate.mirror=true")))
    with torch.inference_mode():
        assert torch.equal(subject.graph(IMAGES), subject.backbone(IMAGES))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "monai/densenet121"])
def test_network__builds_what_the_state_fits(tmp_path: Path, name: str, head: bool) -> None:
    encoder = subject_of(load_encoder("random", make_settings(f"model.backbone={name}")))
    subject = Subject(encoder.encoder, nn.Linear(encoder.backbone.feature_dim, 2) if head else None)
    build = subject.build
    if build["library"] == "timm":
        net: Any = timm.create_model(build["name"], **build["arguments"])
    else:
        net = getattr(nets, build["name"])(**build["arguments"])
        assert (build["replaced_by_identity"] is None) is head
        if not head:
            net.set_submodule(build["replaced_by_identity"], nn.Identity())
    net.load_state_dict(load_file(save_state(subject.state, tmp_path / "a.safetensors")), strict=True)
    with torch.inference_mode():
        features = subject.backbone(IMAGES)
        expected = subject.head(features) if subject.head else features
        torch.testing.assert_close(net.eval()(IMAGES), expected)


def test_network__transformers_are_told_their_size() -> None:
    subject = subject_of(load_encoder("random", make_settings("model.backbone=vit_tiny_patch16_224", "views.size=64")))
    assert subject.build["arguments"] == {"in_chans": 1, "num_classes": 0, "img_size": 64}


def test_network__says_what_timm_must_be_told() -> None:
    subject = subject_of(load_encoder("random", make_settings("model.backbone=moco-v3/vit_tiny")))
    build = subject.build
    assert build["name"] == "vit_tiny_patch16_224"
    assert build["arguments"] == {"in_chans": 1, "num_classes": 0, "num_heads": 12, "img_size": 32}
    net = timm.create_model(build["name"], **build["arguments"]).eval()
    net.load_state_dict(subject.state, strict=True)
    torch.testing.assert_close(net(IMAGES), subject.backbone(IMAGES))


def test_classifier_name__two_are_refused() -> None:
    settings = make_settings("model.backbone=deit_tiny_distilled_patch16_224")
    subject = subject_of(load_encoder("random", settings))
    with pytest.raises(CheckpointError, match="no single classifier"):
        classifier_name(subject)


@pytest.mark.parametrize("name", NETWORKS)
def test_network__of_volumes_is_known_by_what_builds_it(name: str) -> None:
    network = NETWORKS[name]
    build = json.loads(json.dumps(_build_of_volumes(network, 1)))
    assert named_as_built(build) == name
    assert build["arguments"][network.channels] == 1
    if network.also is None or importlib.util.find_spec(network.also):
        with torch.device("cpu" if "swin" in name else "meta"), torch.no_grad():  # Swin's linspace needs a device
            net, width = build_volume_network(name, 1)
            outputs = net.eval()(torch.zeros(2, 1, *[32 if "swin" in name else 64] * 3))
            features = eval(build["features"], {"outputs": outputs})
        assert features.shape == (2, width)


def test_example__has_the_shape_of_the_input() -> None:
    assert volume_subject().example.shape == (2, 1, 32, 32, 32)
    assert volume_subject().precisions == ["float32"]
