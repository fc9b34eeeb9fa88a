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

from medmoco.config import ModelSettings, RunSettings
from medmoco.data.loading import to_float
from medmoco.errors import SettingsError
from medmoco.evaluation.classifier import Classifier, load_classifier, prepared
from medmoco.evaluation.pictures import Tile, read_views, write_picture
from medmoco.evaluation.selection import find_label, find_rows, load_splits, on_device
from medmoco.models.backbones import Backbone, create_backbone

Maps = NDArray[np.float32]

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
        One line per image: its label, score and probability, and how like its two maps are.

    Raises:
        SettingsError: there is no such label; the encoder has no feature map; `out` cannot be written.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the folder cannot be used.
        DataError: an image cannot be used.
    """
    model, facts = load_classifier(classifier)
    find_label(label, facts["labels"])
    index, trained = facts["labels"].index(label), facts["calibration"][label]
    settings, changes = prepared(settings, facts)
    for change in changes:
        say(change)
    found = load_splits(settings, (split,))[split]
    few = found.select(find_rows(found, rows))
    images = read_views(few, np.arange(len(few)), settings)
    device = on_device(model, settings)
    views = to_float(torch.from_numpy(images[:, None]), settings.views, device, channels_last=False)
    maps, scores = class_maps(model, views, index)
    control, _ = class_maps(_randomised(model), views, index)
    labels = few.labels[:, few.label_names.index(label)] if label in few.label_names else np.full(len(few), np.nan)
    lines, text = [], []
    for place, (row, score) in enumerate(zip(few.rows.tolist(), scores.tolist(), strict=True)):
        known = "not known" if np.isnan(labels[place]) else f"{labels[place]:.0f}"
        probability = 1 / (1 + np.exp(-(trained["slope"] * score + trained["intercept"])))
        alike = _rank_correlation(maps[place], control[place])
        said = f"{split} row {row}: {label} {known}, score {score:+.2f}, probability {probability:.3f}"
        text.append(f"{said}; rank correlation with the map of random weights {alike}")
        lines.append([
            Tile(images[place], f"{split} row {row}\n{label}: {known}"),
            Tile(images[place], f"score {score:+.2f}\nprobability {probability:.3f}", _scaled(maps[place])),
            Tile(images[place], f"random weights\nrank correlation {alike}", _scaled(control[place])),
        ])  # fmt: skip
    write_picture(lines, out)
    return "\n".join([*text, f"{out} shows them: keep it where the images may be"])


def class_maps(classifier: Classifier, views: Tensor, index: int) -> tuple[Maps, NDArray[np.float64]]:
    """Return Grad-CAM maps of one label, and its scores.

    A classifier that looks at an image and its mirror image has two maps; their mean is returned.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), eq. 1 and 2; by MONAI.

    Args:
        classifier: In eval mode.
        views: (B, 1, S, S), normalised.
        index: Of the label.

    Returns:
        (B, S, S), from 0, in no unit that could be compared between images; and (B,).

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
    return maps[:, 0].cpu().numpy(), scores


def _grad_cam(classifier: Classifier, views: Tensor, index: int) -> Tensor:
    """Return the maps of one forward pass, (B, 1, S, S)."""
    from monai.visualize import GradCAM  # here, because importing MONAI takes seconds

    own = copy.deepcopy(classifier)  # MONAI leaves hooks and gradients behind
    layer = last_map(own.backbone, views[:1])
    own.backbone.net.set_submodule(layer, nn.Sequential(own.backbone.net.get_submodule(layer), _Contiguous()))
    cam = GradCAM(own, target_layers=f"backbone.net.{layer}.1", postprocessing=lambda values: values)
    maps: Tensor = cam(views, class_idx=index)
    return maps.detach()


class _Contiguous(nn.Module):
    """Gives a feature map the layout in memory that MONAI expects, and its gradient too."""

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
            f"{backbone.name} has no feature map of channels by places at its end, which Grad-CAM needs: transformers\n"
            "have none. Train a convolutional network for it, such as a ResNet, DenseNet or ConvNeXt."
        )
    return str(name)


def _randomised(classifier: Classifier) -> Classifier:
    """Return the same classifier with an encoder of random weights."""
    given = classifier.backbone
    untrained = create_backbone(ModelSettings(backbone=given.name), seed=0, size=given.fixed_size or 224)
    made = Classifier(untrained, classifier.head, mirror=classifier.mirror, exclusive=classifier.exclusive)
    return made.to(next(given.parameters()).device).eval()


def _scaled(values: Maps) -> Maps:
    highest = float(values.max())
    return values / highest if highest else values


def _rank_correlation(first: Maps, second: Maps) -> str:
    if any(values.min() == values.max() for values in (first, second)):
        return "undefined (a map is empty)"
    ranks = [pd.Series(values.ravel()).rank() for values in (first, second)]
    return f"{ranks[0].corr(ranks[1]):+.2f}"
