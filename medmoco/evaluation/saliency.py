"""Where a classifier looks: Grad-CAM class maps of a few images, `medmoco saliency`.

A map says which places of the last feature map raised a score, on the coarse grid that this map has. It does not say
that the finding is there, nor that the score is right; see docs/insight.md. So each map stands beside the one of the
same network with random weights: what both show is the image's edges and the network's shape, not what was learned.
Source: Adebayo et al. 2018 (arXiv:1810.03292).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import ModelSettings, RunSettings
from medmoco.data.loading import to_float
from medmoco.data.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.classifier import load_classifier, own_calibration, prepared
from medmoco.evaluation.heads import Classifier
from medmoco.evaluation.inputs import find_label, find_rows, load_splits, on_device
from medmoco.evaluation.pictures import Tile, read_views, write_picture
from medmoco.models.backbones import Backbone, create_backbone

Maps = NDArray[np.float32]
Scores = NDArray[np.float64]

_LAST_OF_MONAI = {"monai/densenet121": "class_layers.relu", "monai/seresnet50": "layer4"}


def saliency(
    settings: RunSettings,
    classifier: Path,
    out: Path,
    rows: Sequence[int],
    label: str,
    *,
    split: str = "val",
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Draw the class maps of chosen images; the picture shows patients.

    Args:
        settings: Of the data. Images are prepared as the classifier's were, whatever the settings say.
        classifier: Folder that `evaluate` or `finetune` left.
        out: PNG file.
        rows: Of the split, as a spreadsheet counts them.
        label: One of the classifier's.
        split: Where the rows are.
        say: Told what is done in another way than the settings say.

    Returns:
        One line per image: its label, score and probability, and how like its map is to that of random weights.

    Raises:
        SettingsError: there is no such label; the encoder has no feature map; `out` cannot be written.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the folder cannot be used.
        DataError: an image cannot be used.
    """
    model, facts = load_classifier(classifier)
    find_label(label, facts["labels"])
    settings, changes = prepared(settings, facts)
    for change in changes:
        say(change)
    found = load_splits(settings, (split,))[split]
    few = found.select(find_rows(found, rows))
    images = read_views(few, np.arange(len(few)), settings)
    device = on_device(model, settings)
    views = to_float(torch.from_numpy(images[:, None]), settings.views, device, channels_last=False)
    index = facts["labels"].index(label)
    scores, maps = class_maps(model, views, index)
    control = random_maps(model, views, index)
    probabilities = own_calibration(facts, label).probabilities(scores)
    text, lines = [], []
    for place, row in enumerate(few.rows.tolist()):
        truth, score = _truth(few, place, label), f"score {scores[place]:+.2f}"
        probability = f"probability {probabilities[place]:.3f}"
        empty = "" if maps[place].any() else "\nno place raises the score"
        text.append(f"{split} row {row}: {truth}, {score}, {probability}; {_judge(maps[place], control[place])}")
        lines.append([
            Tile(images[place], f"{split} row {row}\n{truth}"),
            Tile(images[place], f"{score}\n{probability}{empty}", _overlay(maps[place], views.shape[-1])),
            Tile(images[place], "control:\nrandom weights", _overlay(control[place], views.shape[-1])),
        ])  # fmt: skip
    write_picture(lines, out)
    scale = f"a map has {maps.shape[1]} x {maps.shape[2]} places and is scaled to its own largest value"
    return "\n".join([*text, scale, f"{out} shows them: keep it where the images may be"])


def class_maps(classifier: Classifier, views: Tensor, index: int) -> tuple[Scores, Maps]:
    """Return the scores of one label and their Grad-CAM maps.

    A classifier that looks at an image and its mirror image has two maps; their mean is returned.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), eq. 1 and 2, by MONAI.

    Args:
        classifier: In eval mode.
        views: (B, 1, S, S), normalised.
        index: Of the label.

    Returns:
        (B,), and (B, h, w) from 0, on the grid of the last feature map.

    Raises:
        SettingsError: the encoder has no map of channels and places at its end.
    """
    with torch.inference_mode():
        scores = classifier(views)[:, index].double().cpu().numpy()
    # One forward pass for each side: the hooks of MONAI would see the last of two alone.
    one_sided = Classifier(classifier.backbone, classifier.head, exclusive=classifier.exclusive).eval()
    maps = _grad_cam(one_sided, views, index)
    if classifier.mirror:
        maps = (maps + _grad_cam(one_sided, views.flip(-1), index).flip(-1)) / 2
    return scores, maps.cpu().numpy()


def _grad_cam(classifier: Classifier, views: Tensor, index: int) -> Tensor:
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
        view: (1, 1, S, S), to try it with.

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
            "transformers have none. Use a convolutional network, such as a ResNet, DenseNet or ConvNeXt."
        )
    return str(name)


def random_maps(classifier: Classifier, views: Tensor, index: int) -> Maps:
    """Return the maps, (B, h, w), of the same classifier with an encoder of random weights.

    Whether a place speaks for the label or against it is chance then, so that both count.
    """
    backbone = create_backbone(ModelSettings(backbone=classifier.backbone.name), seed=0, size=views.shape[-1])
    against = copy.deepcopy(classifier.head)
    with torch.no_grad():
        against.weight.neg_()
    both = [
        Classifier(backbone.to(views.device), head, mirror=classifier.mirror).eval()
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


def _judge(values: Maps, control: Maps) -> str:
    alike = rank_correlation(values, control)
    if not values.any():
        return "no place raises the score"
    if alike is None:
        return "all places raise the score alike"
    return f"rank correlation with the control {alike:+.2f}"


def _truth(split: Split, position: int, label: str) -> str:
    values = split.labels[position, [name == label for name in split.label_names]]
    return f"{label} {values[0]:.0f}" if values.size and not np.isnan(values[0]) else f"{label} not known"


def _overlay(values: Maps, size: int) -> Maps:
    """Return a map as large as the image, its highest value 1."""
    large = functional.interpolate(torch.from_numpy(values)[None, None], (size, size), mode="bilinear")[0, 0]
    shown: Maps = (large / large.max().clamp(min=torch.finfo(large.dtype).tiny)).numpy()
    return shown
