"""Class maps peak where the label is, agree with the formula, and say when they mean nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError, ManifestError, SettingsError
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.inspection import saliency as module
from medmoco.inspection.saliency import class_maps, last_map, patch_maps, random_maps, rank_correlation, saliency
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.patches import patch_features
from tests.helpers.looks import make_data, names_a_secret


def classifier_of(name: str, labels: int = 2, size: int = 64, **given: Any) -> ClassifierNetwork:
    backbone = create_backbone(ModelSettings(backbone=name), seed=1, size=size)
    torch.manual_seed(2)
    return ClassifierNetwork(backbone, nn.Linear(backbone.feature_dim, labels), **given).eval()


@pytest.fixture(scope="module")
def corner_net() -> ClassifierNetwork:
    """A small network trained to tell whether there is a bright square, wherever it is, in noise."""
    torch.manual_seed(0)
    widths = [1, 8, 16, 16]  # each cell of 8 x 8 pixels is seen by one place of the map alone
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 2, 2), nn.ReLU())]
    net = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.feature_info = [{"module": "0", "num_chs": 16}]
    made = ClassifierNetwork(Backbone("made", net, 16), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(80):
        views, targets = squares(64, *torch.randint(0, 6, (2,)).tolist())
        scores = made(views)
        loss = binary_cross_entropy_with_logits(scores[:, 1], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return made.eval()


def squares(count: int, y: int, x: int) -> tuple[Tensor, Tensor]:
    """Make noise of 48 pixels; every other image has a square at cell (y, x) of 6 x 6."""
    views, targets = 0.3 * torch.randn(count, 1, 48, 48), torch.arange(count) % 2
    views[targets == 1, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 1.5
    return views, targets.float()


@pytest.mark.parametrize("corner", [(0, 0), (0, 5), (5, 0), (5, 5), (2, 3)])
def test_class_maps__peak_at_what_decides(corner_net: ClassifierNetwork, corner: tuple[int, int]) -> None:
    views, targets = squares(6, *corner)
    scores, maps = class_maps(corner_net, views, 1)
    assert ((scores > 0) == (targets == 1).numpy()).all()
    assert maps.shape == (6, 6, 6)
    for values in maps[targets.numpy() == 1]:
        assert np.unravel_index(values.argmax(), (6, 6)) == corner
        assert values[corner] > 3 * np.delete(values.ravel(), 6 * corner[0] + corner[1]).mean()


@pytest.mark.parametrize("corner", [(0, 0), (4, 5)])
def test_class_maps__of_a_mirrored_classifier_are_of_both_sides(
    corner_net: ClassifierNetwork, corner: tuple[int, int]
) -> None:
    both = ClassifierNetwork(corner_net.backbone, corner_net.head, mirror=True).eval()
    views, _ = squares(2, *corner)
    _, one = class_maps(corner_net, views, 1)
    _, other = class_maps(corner_net, views.flip(-1), 1)
    scores, maps = class_maps(both, views, 1)
    np.testing.assert_allclose(maps, (one + other[..., ::-1]) / 2, rtol=1e-4, atol=1e-7)
    assert np.unravel_index(maps[1].argmax(), (6, 6)) == corner
    assert scores == pytest.approx(both(views)[:, 1].double().tolist(), rel=1e-6)


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "convnext_atto", "monai/densenet121", "monai/seresnet50"])
def test_class_maps__agree_with_the_formula(name: str) -> None:
    """Behind a mean over places, the gradient of a score is the head's weight: Zhou et al. 2016 without its norm."""
    made = classifier_of(name)
    views = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    if name == "convnext_atto":
        made.backbone.net.head.norm = nn.Identity()  # else the gradient is not the weight
    layer = last_map(made.backbone, views[:1])
    kept: list[Tensor] = []
    made.backbone.net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        made(views)
    places = kept[0].shape[2] * kept[0].shape[3]
    expected = torch.einsum("bchw,c->bhw", kept[0], made.head.weight[1]).relu() / places
    scores, maps = class_maps(made, views, 1)
    np.testing.assert_allclose(maps, expected.detach().numpy(), rtol=1e-3, atol=1e-6)
    assert scores == pytest.approx(made(views)[:, 1].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "monai/resnet10_quarter",
        pytest.param("monai/densenet121", marks=pytest.mark.slow),
        pytest.param("nnunet/resenc_4stages", marks=pytest.mark.slow),
    ],
)
def test_class_maps__of_volumes_agree_with_the_formula(name: str) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=1, size=48, dimensions=3)
    made = ClassifierNetwork(backbone, nn.Linear(backbone.feature_dim, 2)).eval()
    views = torch.randn(2, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    kept: list[Tensor] = []
    layer = made.backbone.net.get_submodule(last_map(backbone, views[:1]))
    hook = layer.register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        made(views)
    hook.remove()
    expected = torch.einsum("bcxyz,c->bxyz", kept[0], made.head.weight[1]).relu() / kept[0][0, 0].numel()
    np.testing.assert_allclose(class_maps(made, views, 1)[1], expected.detach().numpy(), rtol=1e-3, atol=1e-6)
    both = ClassifierNetwork(backbone, made.head, mirror=True).eval()
    other = class_maps(made, views.flip(2), 1)[1]
    mean = (expected.detach().numpy() + other[:, ::-1]) / 2
    np.testing.assert_allclose(class_maps(both, views, 1)[1], mean, rtol=1e-3, atol=1e-6)


def test_peak__is_the_voxel_in_which_slices_meet() -> None:
    values = np.zeros((2, 2, 3), np.float32)
    values[1, 0, 2] = 1
    assert module._peak(values, 48) == (36, 12, 40)
    assert module._peak(values[0], 48) is None
    overlay = module._overlay(values, 48)
    assert overlay[36, 12, 40] > 0.95 * overlay.max()


def test_last_map__of_volumes_a_transformer_has_none() -> None:
    backbone = create_backbone(ModelSettings(backbone="monai/swin_unetr"), seed=0, size=32, dimensions=3).eval()
    with pytest.raises(SettingsError, match=r"transformers do not\. Use a convolutional network"):
        last_map(backbone, torch.zeros(1, 1, 32, 32, 32))


def test_class_maps__leave_the_classifier_as_it_was(corner_net: ClassifierNetwork) -> None:
    before = {name: value.clone() for name, value in corner_net.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in corner_net.parameters()]
    class_maps(corner_net, squares(2, 1, 1)[0], 1)
    assert all(torch.equal(value, before[name]) for name, value in corner_net.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(corner_net.parameters(), gradients, strict=True))
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in corner_net.modules())
    assert not corner_net.training


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_last_map__a_transformer_has_none(name: str) -> None:
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=64 if "vit" in name else 224).eval()
    with pytest.raises(SettingsError, match=f"{name} does not end in a feature map of channels") as caught:
        last_map(backbone, torch.zeros(1, 1, *[backbone.fixed_size or 64] * 2))
    assert "finetune.head=patches" in str(caught.value)


def test_last_map__several_stages_have_no_single_one() -> None:
    backbone = create_backbone(ModelSettings(backbone="resnet10t"), seed=0, size=64, stages=2).eval()
    with pytest.raises(SettingsError, match=r"features of 2 stages[\s\S]*evaluate\.stages=1"):
        last_map(backbone, torch.zeros(1, 1, 64, 64))


def test_random_maps__do_not_depend_on_the_weights(
    corner_net: ClassifierNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained encoder and a poor one of the same kind have the same control; it has something to show everywhere."""
    made, other = classifier_of("resnet10t"), classifier_of("resnet10t")
    torch.nn.init.zeros_(other.backbone.net.layer4[0].conv1.weight)
    views = torch.randn(2, 1, 64, 64)
    control = random_maps(made, views, 0)
    np.testing.assert_array_equal(control, random_maps(other, views, 0))
    assert (control > 0).all()
    assert not np.allclose(control, class_maps(made, views, 0)[1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_patch_maps__have_the_score_as_the_mean_of_their_highest(name: str, mirror: bool) -> None:
    made = classifier_of(name, mirror=mirror, top_patches=3)
    views = torch.randn(2, 1, 64, 64)
    scores, maps = patch_maps(made, views, 1)
    assert maps.shape == ((2, 4, 4) if name == "test_vit" else (2, 2, 2))
    np.testing.assert_allclose(np.sort(maps.reshape(2, -1))[:, -3:].mean(1), scores, rtol=1e-5)
    assert scores == pytest.approx(made(views)[:, 1].tolist(), rel=1e-5)
    control = random_maps(made, views, 1)
    assert control.shape == maps.shape
    assert not np.allclose(control, maps)


def test_patch_maps__show_the_patch_that_decides() -> None:
    """A head that asks for what the square's patch has and the others do not finds it wherever it is."""
    made = classifier_of("test_vit", top_patches=1)
    for module_ in made.backbone.net.modules():
        if type(module_).__name__ == "Attention":
            nn.init.zeros_(module_.proj.weight)  # so that no patch knows of another
    nn.init.zeros_(made.backbone.net.pos_embed)
    views = torch.zeros(2, 1, 64, 64)
    views[0, :, 16:32, 48:64] = views[1, :, 48:64, 0:16] = 1.5
    with torch.no_grad():
        features = patch_features(made.backbone, views)
        made.head.weight[1] = features[0, 1, 3] - features[0, 0, 0]
    _, maps = patch_maps(made, views, 1)
    assert [np.unravel_index(values.argmax(), (4, 4)) for values in maps] == [(1, 3), (3, 0)]


def test_rank_correlation__is_spearmans() -> None:
    first = np.array([[1, 2], [3, 4]], np.float32)
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.array([[2, 1], [3, 4]], np.float32)) == pytest.approx(0.8)
    assert rank_correlation(first, np.zeros((2, 2), np.float32)) is None


def test_describe__says_when_a_class_map_means_nothing() -> None:
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert module._describe(np.zeros_like(values), None) == ["no position raises the score"]
    assert module._describe(np.ones_like(values), None) == ["all positions raise the score equally"]
    assert module._describe(values, None) == []
    assert module._describe(values - 1, 2) == ["patches -1.00 to +2.00, averaged from +1.00"]
    assert module._similarity(values, values) == ["rank correlation with the control +1.00"]
    assert module._similarity(values, np.zeros_like(values)) == []


def test_overlay__is_scaled_to_its_largest_value() -> None:
    shown = module._overlay(np.array([[0, 4], [0, 2]], np.float32), 8)
    assert shown.shape == (8, 8)
    assert shown.max() == 1
    assert shown[:, 0].max() == 0
    assert not module._overlay(np.zeros((2, 2), np.float32), 8).any()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = make_data(tmp_path)
    facts = describe_classifier(
        settings, ("Hard", "Other"), trained="linear probe", encoder={"kind": "run", "step": 3},
        val_auroc={"Hard": 0.7, "Other": None}, operating_points={"Hard": [], "Other": []},
        calibration={name: {"kind": "platt", "slope": 0.5, "intercept": 1.0} for name in ("Hard", "Other")},
    )  # fmt: skip
    save_classifier(tmp_path / "classifier", classifier_of("resnet10t"), facts)
    return tmp_path / "classifier"


def test_saliency__writes_the_picture_and_says_what_it_shows(tmp_path: Path, folder: Path) -> None:
    settings = make_data(tmp_path / "again", "views.size=48")
    said: list[str] = []
    text = saliency(settings, folder, tmp_path / "new" / "maps.png", [4, 2, 3], "Hard", log=said.append)
    lines = text.splitlines()
    assert [line.split(", score")[0] for line in lines[:3]] == [
        "val row 4: Hard 0",
        "val row 2: Hard 1",
        "val row 3: Hard unknown",
    ]
    for line in lines[:3]:
        score, probability = (float(line.partition(word)[2].split(",")[0].split(";")[0]) for word in ("score ", "ity "))
        assert probability == pytest.approx(1 / (1 + np.exp(-(0.5 * score + 1))), abs=0.003)
    assert lines[3] == "Grad-CAM: each map has 2 x 2 positions and is scaled to its largest value"
    assert said == ["evaluate.size is 64, as in training, not 48"]
    picture = cv2.imread(str(tmp_path / "new" / "maps.png"))
    assert picture.shape[1] / picture.shape[0] == pytest.approx(3 * 1.9 / (3 * 2.45), rel=0.01)
    assert np.ptp(picture.astype(int), axis=2).max() > 30  # there is colour
    assert not names_a_secret(tmp_path / "new" / "maps.png")
    assert "secret" not in text.replace(str(tmp_path), "")


def test_saliency__of_patches_draws_their_scores_and_outlines_those_kept(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "model.backbone=test_vit")
    facts = describe_classifier(
        settings, ("Hard", "Other"), trained="fine-tuned", encoder={"kind": "run", "step": 3}, top_patches=3,
        val_auroc={"Hard": 0.7, "Other": None}, operating_points={"Hard": [], "Other": []},
        calibration={name: {"kind": "none", "slope": 1.0, "intercept": 0.0} for name in ("Hard", "Other")},
    )  # fmt: skip
    save_classifier(tmp_path / "patches", classifier_of("test_vit", top_patches=3), facts)
    text = saliency(settings, tmp_path / "patches", tmp_path / "maps.png", [4, 2], "Hard")
    lines = text.splitlines()
    for line in lines[:2]:
        score, lowest, highest, kept = (
            float(line.partition(word)[2].split()[0].rstrip(",;")) for word in ("score ", "patches ", " to ", "from ")
        )
        assert lowest < kept < score + 0.01 < highest + 0.02
    assert lines[2].startswith("patch scores: each map has 4 x 4 patches")
    assert lines[3] == "the mean of the 3 outlined patches"
    picture = cv2.imread(str(tmp_path / "maps.png")).astype(int)
    cyan = (picture[..., 0] > 200) & (picture[..., 1] > 200) & (picture[..., 2] < 100)
    assert 100 < cyan.sum() < cyan.size / 10
    assert not cyan[:, : cyan.shape[1] // 3].any()  # not over the image itself


def test_highest__are_the_places_that_count() -> None:
    values = np.array([[3, 1], [2, 5]], np.float32)
    assert module._highest(values, 2).tolist() == [[True, False], [False, True]]
    tied = np.zeros((3, 3), np.float32)
    assert module._highest(tied, 4).sum() == 4


def test_saliency__what_cannot_be_is_refused(tmp_path: Path, folder: Path) -> None:
    settings = make_data(tmp_path / "again")
    out = tmp_path / "maps.png"
    with pytest.raises(SettingsError, match="no label 'Easy'; known: Hard, Other"):
        saliency(settings, folder, out, [2], "Easy")
    with pytest.raises(ManifestError, match="no row 50"):
        saliency(settings, folder, out, [50], "Hard")
    with pytest.raises(CheckpointError, match="not a classifier folder"):
        saliency(settings, tmp_path, out, [2], "Hard")
    assert not out.exists()


def test_truth__a_label_that_the_settings_do_not_name_is_not_known() -> None:
    split: Any = SimpleNamespace(labels=np.array([[1.0, np.nan]]), label_names=("A", "B"))
    assert [module._truth(split, 0, name) for name in "ABC"] == ["A 1", "B unknown", "C unknown"]
