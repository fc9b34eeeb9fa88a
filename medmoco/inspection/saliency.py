"""Where a classifier looks: maps of a few images, `medmoco saliency`.

Of a classifier that scores patches the map is these scores. Of any other it is Grad-CAM's: which places of the last
feature map raised the score, on the coarse grid that this map has. Neither says that the finding is there, nor that the
score is right; see docs/insight.md. So each map stands beside the one of the same network with random weights: what
both show is the image's edges and the network's shape, not what was learned.
Source: Adebayo et al. 2018 (arXiv:1810.03292).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import ModelSettings, RunSettings
from medmoco.data.loading.loading import to_float
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.inputs import find_label, find_rows, load_splits, on_device
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.plotting.pictures import Tile, read_views, shown, write_picture

Maps = NDArray[np.float32]
Scores = NDArray[np.float64]

_CONTROL = ("control:", "random weights")
_LAST_OF_MONAI = {"monai/densenet121": "class_layers.relu", "monai/seresnet50": "layer4"}


def saliency(
    settings: RunSettings,
    classifier: Path,
    out: Path,
    rows: Sequence[int],
    label: str,
    *,
    split: str = "val",
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Draw the maps of chosen images; the picture shows patients.

    Args:
        settings: Of the data. Images are prepared as the classifier's were, whatever the settings say.
        classifier: Folder that `evaluate` or `finetune` left.
        out: PNG file.
        rows: Of the split, as a spreadsheet counts them.
        label: One of the classifier's.
        split: Where the rows are.
        log: Told what is done in another way than the settings say.

    Returns:
        One line per image: its label, score and probability, what patches score, and how like its map is to that of
        random weights. Then what the maps are.

    Raises:
        SettingsError: there is no such label; the encoder has no feature map; `out` cannot be written.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the folder cannot be used.
        DataError: an image cannot be used.
    """
    loaded = load_classifier(classifier)
    find_label(label, loaded.labels)
    model = loaded.module
    settings, changes = loaded.prepared(settings)
    for change in changes:
        log(change)
    found = load_splits(settings, (split,))[split]
    few = found.select(find_rows(found, rows))
    images, device = read_views(few, np.arange(len(few)), settings), on_device(model, settings)
    views = to_float(torch.from_numpy(images), settings.views, device, channels_last=False)
    index, top = loaded.labels.index(label), model.top_patches
    scores, maps = (class_maps if top is None else patch_maps)(model, views, index)
    control = random_maps(model, views, index)
    probabilities = loaded.calibrations[label].probabilities(scores)
    text, lines = [], []
    for place, row in enumerate(few.rows.tolist()):
        names = (f"{split} row {row}", _truth(few, place, label))
        answer = f"score {scores[place]:+.2f}, probability {probabilities[place]:.3f}"
        remarks = _describe(maps[place], top)
        about = [*remarks, *_liken(maps[place], control[place])]
        text.append(f"{': '.join(names)}, {'; '.join([answer, *about])}")
        captions = (names, ("Grad-CAM" if top is None else "patch scores", answer, *remarks), _CONTROL)
        lines.append(_tiles(shown(images[place], settings.data), captions, (maps[place], control[place]), top))
    write_picture(lines, out)
    return "\n".join([*text, _legend(model, maps), f"{out} shows them: keep it where the images may be"])


def patch_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> tuple[Scores, Maps]:
    """Return the scores of one label, and those of the patches that they are made of.

    Args:
        classifier: One that scores patches, in eval mode.
        views: (B, C, S, S), normalised.
        index: Of the label.

    Returns:
        (B,), and (B, h, w), of which each image's highest have its score as their mean.
    """
    with torch.inference_mode():
        patches = classifier.score_patches(views)
        scores = classifier.pool(patches)[:, index]
    return scores.double().cpu().numpy(), patches[:, index].cpu().numpy()


def class_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> tuple[Scores, Maps]:
    """Return the scores of one label and their Grad-CAM maps.

    A classifier that looks at an image and its mirror image has two maps; their mean is returned.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), eq. 1 and 2, by MONAI.

    Args:
        classifier: In eval mode.
        views: (B, C, S, S), normalised.
        index: Of the label.

    Returns:
        (B,), and (B, h, w) from 0, on the grid of the last feature map.

    Raises:
        SettingsError: the encoder has no map of channels and places at its end.
    """
    with torch.inference_mode():
        scores = classifier(views)[:, index].double().cpu().numpy()
    # One forward pass for each side: the hooks of MONAI would see the last of two alone.
    one_sided = ClassifierNetwork(classifier.backbone, classifier.head, exclusive=classifier.exclusive).eval()
    maps = _grad_cam(one_sided, views, index)
    if classifier.mirror:
        maps = (maps + _grad_cam(one_sided, views.flip(-1), index).flip(-1)) / 2
    return scores, maps.cpu().numpy()


def _grad_cam(classifier: ClassifierNetwork, views: Tensor, index: int) -> Tensor:
    """Return the maps of one forward pass, (B, h, w)."""
    from monai.visualize import GradCAM  # here, because importing MONAI takes seconds

    own = copy.deepcopy(classifier)  # MONAI leaves hooks and gradients behind
    layer = last_map(own.backbone, views[:1])
    own.backbone.net.set_submodule(layer, nn.Sequential(own.backbone.net.get_submodule(layer), _Contiguous()))
    maps: Tensor = GradCAM(own, target_layers=f"backbone.net.{layer}.1").compute_map(views, class_idx=index)
    return maps.detach()[:, 0]


class _Contiguous(nn.Module):
    """Gives a feature map, and its gradient, the layout in memory that MONAI expects."""

    def forward(self, features: Tensor) -> Tensor:
        return features.contiguous()


def last_map(backbone: Backbone, view: Tensor) -> str:
    """Return the name of the module in `backbone.net` that gives the last feature map.

    Args:
        backbone: In eval mode.
        view: (1, C, S, S), to try it with.

    Raises:
        SettingsError: it gives no map of channels and places, as in a transformer.
    """
    described = getattr(backbone.net, "feature_info", None)
    name = _LAST_OF_MONAI.get(backbone.name) or (described[-1]["module"] if described else None)
    shapes: list[torch.Size] = []
    if name:
        module = backbone.net.get_submodule(name)
        hook = module.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        with torch.inference_mode():
            backbone(view)
        hook.remove()
    channels = described[-1]["num_chs"] if described else backbone.feature_dim
    if not name or not shapes or len(shapes[0]) != 4 or shapes[0][1] != channels:
        raise SettingsError(
            f"{backbone.name} has no feature map of channels by places at its end, which Grad-CAM needs;\n"
            "transformers have none. Fine-tune it with finetune.head=patches, or use a convolutional network."
        )
    return str(name)


def random_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> Maps:
    """Return the maps, (B, h, w), of the same classifier with an encoder of random weights.

    Whether a place speaks for the label or against it is chance then, so that both count in a class map.
    """
    model, channels = ModelSettings(backbone=classifier.backbone.name), classifier.backbone.channels
    backbone = create_backbone(model, seed=0, size=views.shape[-1], channels=channels)
    if classifier.top_patches is not None:
        untrained = ClassifierNetwork(
            backbone.to(views.device), classifier.head, mirror=classifier.mirror, top_patches=classifier.top_patches
        )
        return patch_maps(untrained.eval(), views, index)[1]
    against = copy.deepcopy(classifier.head)
    with torch.no_grad():
        against.weight.neg_()
    both = [
        ClassifierNetwork(backbone.to(views.device), head, mirror=classifier.mirror).eval()
        for head in (classifier.head, against)
    ]
    return class_maps(both[0], views, index)[1] + class_maps(both[1], views, index)[1]


def rank_correlation(first: Maps, second: Maps) -> float | None:
    """Return Spearman's rank correlation of two maps' places; None where one map is constant.

    Source: Adebayo et al. 2018, section 3, compare maps by it.
    """
    if any(values.min() == values.max() for values in (first, second)):
        return None
    ranks = [pd.Series(values.ravel()).rank() for values in (first, second)]
    return float(ranks[0].corr(ranks[1]))


def _describe(values: Maps, top: int | None) -> list[str]:
    """Say which scores patches have; of a class map, only that it means nothing."""
    if top is None:
        if values.min() < values.max():
            return []
        return ["all places raise the score alike" if values.any() else "no place raises the score"]
    kept = values[_highest(values, top)].min()
    return [f"patches {values.min():+.2f} to {values.max():+.2f}, kept from {kept:+.2f}"]


def _liken(values: Maps, control: Maps) -> list[str]:
    alike = rank_correlation(values, control)
    return [] if alike is None else [f"rank correlation with the control {alike:+.2f}"]


def _legend(classifier: ClassifierNetwork, maps: Maps) -> str:
    grid = f"{maps.shape[1]} x {maps.shape[2]}"
    if classifier.top_patches is None:
        return f"Grad-CAM: a map has {grid} places and is scaled to its own largest value"
    unit = "the class's logit before softmax" if classifier.exclusive else "the log-odds"
    return (
        f"patch scores: a map has {grid} patches, coloured from its own lowest to its highest; {unit} of an image is\n"
        f"the mean of the {classifier.top_patches} that are outlined"
    )


def _truth(split: Split, position: int, label: str) -> str:
    values = split.labels[position, [name == label for name in split.label_names]]
    return f"{label} {values[0]:.0f}" if values.size and not np.isnan(values[0]) else f"{label} not known"


def _tiles(
    pixels: NDArray[Any], captions: Sequence[Sequence[str]], maps: Sequence[Maps], top: int | None
) -> list[Tile]:
    """Return an image without and then under each map; of patch scores, the highest are outlined."""
    plain, *others = ["\n".join(caption) for caption in captions]
    tiles = [Tile(pixels, plain)]
    for caption, values in zip(others, maps, strict=True):
        if top is None:
            tiles.append(Tile(pixels, caption, _overlay(values, len(pixels))))
        else:
            above = values - values.min()
            tiles.append(Tile(pixels, caption, _overlay(above, len(pixels), "nearest"), _highest(values, top)))
    return tiles


def _highest(values: Maps, top: int) -> NDArray[np.bool_]:
    """Return the mask (h, w) of the highest values."""
    kept = np.zeros(values.size, bool)
    kept[torch.from_numpy(values).flatten().topk(top).indices.numpy()] = True
    return kept.reshape(values.shape)


def _overlay(values: Maps, size: int, mode: str = "bilinear") -> Maps:
    """Return a map as large as the image, its highest value 1."""
    large = functional.interpolate(torch.from_numpy(values)[None, None], (size, size), mode=mode)[0, 0]
    scaled: Maps = (large / large.max().clamp(min=torch.finfo(large.dtype).tiny)).numpy()
    return scaled
