from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medmoco.config import ModelSettings
from medmoco.evaluation.features.probes import Probe, Standard, one_versus_rest
from medmoco.evaluation.supervised.heads import ClassifierNetwork, fold_probe
from medmoco.models.backbones import create_backbone
from medmoco.models.patches import patch_features


def make_classifier(backbone: str = "test_resnet", **options: Any) -> ClassifierNetwork:
    encoder = create_backbone(ModelSettings(backbone=backbone), seed=3, size=64)
    torch.manual_seed(0)
    return ClassifierNetwork(encoder, nn.Linear(encoder.feature_dim, 3), **options)


def test_fold_probe__gives_on_raw_features_what_the_probe_gives_on_standardised_ones() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(3, 5, (50, 8)).astype(np.float32)
    features[:, 3] = 2.0  # a dead feature
    scaler = StandardScaler().fit(features)
    coefficients, intercepts = generator.normal(size=(2, 8)), generator.normal(size=2)
    expected = scaler.transform(features) @ coefficients.T + intercepts
    probes = [Probe(1.0, weights, bias, {}) for weights, bias in zip(coefficients, intercepts, strict=True)]
    head = fold_probe(Standard({}, scaler.mean_, scaler.scale_), probes)
    np.testing.assert_allclose(head(torch.from_numpy(features)).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_one_versus_rest__is_the_log_odds_of_softmax() -> None:
    logits = 4 * torch.randn(40, 5, dtype=torch.float64)
    p = logits.softmax(1)
    torch.testing.assert_close(one_versus_rest(logits), torch.log(p / (1 - p)))


def test_one_versus_rest__stays_finite_and_differentiable_where_one_class_is_certain() -> None:
    logits = torch.tensor([[90.0, 0.0, -50.0], [1.0, 1.0, 0.0]], requires_grad=True)
    scores = one_versus_rest(logits)
    torch.testing.assert_close(scores[0], torch.tensor([90.0, -90.0, -140.0]))
    scores.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_classifier__mirrors_in_eval_mode_alone() -> None:
    classifier, views = make_classifier(mirror=True), torch.randn(4, 1, 32, 32)
    classifier.eval()
    torch.testing.assert_close(classifier(views), classifier(views.flip(-1)))
    plain = make_classifier().eval()
    mean = (plain(views) + plain(views.flip(-1))) / 2
    torch.testing.assert_close(classifier(views), mean)
    torch.testing.assert_close(classifier.train()(views), make_classifier().train()(views))


@pytest.mark.parametrize(("mirror", "exclusive"), [(False, False), (True, False), (True, True)])
def test_classifier__of_patches_is_the_mean_of_the_highest_scores(mirror: bool, exclusive: bool) -> None:
    """Told by loops over images, labels and patches."""
    made = make_classifier("test_vit", mirror=mirror, exclusive=exclusive, top_patches=3).eval()
    views = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        scores, maps = made(views), made.score_patches(views)
        features = [patch_features(made.backbone, views), patch_features(made.backbone, views.flip(-1))]
    assert maps.shape == (2, 3, 4, 4)
    logits = torch.zeros(2, 3)
    for image in range(2):
        for label in range(3):
            weight, bias = made.head.weight[label].detach(), made.head.bias[label].item()
            places = []
            for y in range(4):
                for x in range(4):
                    own = float(features[0][image, y, x] @ weight) + bias
                    other = float(features[1][image, y, 3 - x] @ weight) + bias
                    places.append((own + other) / 2 if mirror else own)
                    assert maps[image, label, y, x] == pytest.approx(places[-1], rel=1e-4, abs=1e-5)
            logits[image, label] = sum(sorted(places)[-3:]) / 3
    torch.testing.assert_close(scores, one_versus_rest(logits) if exclusive else logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made.train().score_patches(views), maps) or not mirror


def test_classifier__of_all_patches_of_a_pooling_network_is_the_linear_one() -> None:
    """Where a network's features are the mean of its places', k = all comes to the linear head."""
    linear, patches = make_classifier().eval(), make_classifier(top_patches=4).eval()
    views = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(patches(views), linear(views))


def test_classifier__of_patches_learns_from_the_highest_alone() -> None:
    made = make_classifier("test_vit", top_patches=2).eval()
    maps = made.score_patches(torch.randn(1, 1, 64, 64)).detach().requires_grad_()
    made.pool(maps)[0, 1].backward()
    assert maps.grad is not None
    assert maps.grad[0, 1].count_nonzero() == 2
    assert set(maps.grad[0, 1].nonzero()[:, 0].tolist()) | set(maps.grad[0, 1].nonzero()[:, 1].tolist()) <= set(
        range(4)
    )
    assert torch.equal(maps.grad[0, 1] > 0, maps[0, 1] >= maps[0, 1].flatten().topk(2).values[1])
    assert not maps.grad[0, [0, 2]].any()


def test_classifier__of_patches_points_at_what_nobody_showed_it() -> None:
    """A transformer told only whether there is a bright square finds out where: Zhang et al. 2016's pointing game."""
    made = make_classifier("test_vit", top_patches=1)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for _ in range(12):
        views, _ = squares(16)
        loss = binary_cross_entropy_with_logits(made(views)[:, 1], (torch.arange(16) % 2).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    views, places = squares(64)
    with torch.no_grad():
        pointed = made.eval().score_patches(views)[1::2, 1].flatten(1).argmax(1)
    assert (pointed == places[1::2]).float().mean() > 0.9  # by chance 1 in 16


def squares(count: int) -> tuple[Tensor, Tensor]:
    """Make noise of 4 x 4 patches; every other image has a bright one somewhere, whose number is returned too."""
    views, places = 0.3 * torch.randn(count, 1, 64, 64), torch.randint(0, 16, (count,))
    for image, place in list(enumerate(places.tolist()))[1::2]:
        y, x = 16 * (place // 4), 16 * (place % 4)
        views[image, :, y : y + 16, x : x + 16] += 1
    return views, places
