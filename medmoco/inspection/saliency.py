"""`medmoco saliency`: draw saliency maps of a classifier for some images.

For a classifier that scores patches, the map consists of these scores. For any other, it is the Grad-CAM map: the
positions of the last feature map that raised the score, on the coarse grid of this map. Neither shows that the finding
is at this position, nor that the score is correct; see docs/insight.md. So each map is shown next to that of the same
network with random weights: what both have in common reflects the image's edges and the network's architecture, not
what was learned.
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

from medmoco.config import ConfigSource, ModelSettings, RunSettings, load
from medmoco.data.augment.color import orthogonal_slices
from medmoco.data.augment.normalisation import to_float
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.inputs import find_label, find_rows, load_splits, on_device
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.networks.volumes import NETWORKS
from medmoco.plotting.pictures import Tile, read_views, shown, write_picture
from medmoco.utils.files import PathLike

Maps = NDArray[np.float32]
Scores = NDArray[np.float64]

_CONTROL = ("control:", "random weights")
_LAST_OF_MONAI = {"monai/densenet121": "class_layers.relu", "monai/seresnet50": "layer4"}


def saliency(
    config: ConfigSource,
    classifier: PathLike,
    out: PathLike,
    rows: Sequence[int],
    label: str,
    *,
    split: str = "val",
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Draw saliency maps of images; the picture shows patients.

    Args:
        config: Settings of the data, see `load_config`. Preprocessing is that of the classifier in any case.
        classifier: Classifier folder written by `evaluate` or `finetune`.
        out: PNG file.
        rows: Row numbers in the split, counted as in a spreadsheet.
        label: One of the classifier's labels.
        split: Split of the rows.
        log: Receives messages about deviations from the settings.

    Returns:
        One line per image: its label, score and probability, the patch scores, and the correlation of its map with the
        control. Then a description of the maps.

    Raises:
        SettingsError: the label does not exist, the encoder has no feature map, or `out` cannot be written.
        ManifestError: the manifest or a row cannot be used.
        CheckpointError: the folder cannot be used.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> folder = "runs/phantoms/evaluation/classifier"
        >>> print(medmoco.saliency("config.yaml", folder, "saliency.png", [2], "Opacity"))  # doctest: +SKIP
    """
    loaded, out = load_classifier(classifier), Path(out)
    find_label(label, loaded.labels)
    model = loaded.module
    settings, changes = loaded.prepared(load(config))
    for change in changes:
        log(change)
    _refuse_windows(settings)
    found = load_splits(settings, (split,))[split]
    few = found.select(find_rows(found, rows))
    images, device = read_views(few, np.arange(len(few)), settings), on_device(model, settings)
    views = to_float(torch.from_numpy(images), settings.views, device, channels_last=False)
    column, top = loaded.labels.index(label), model.top_patches
    scores, maps = (class_maps if top is None else patch_maps)(model, views, column)
    control = random_maps(model, views, column)
    probabilities = loaded.calibrations[label].probabilities(scores)
    text, lines = [], []
    for index, row in enumerate(few.rows.tolist()):
        names = (f"{split} row {row}", _truth(few, index, label))
        result = f"score {scores[index]:+.2f}, probability {probabilities[index]:.3f}"
        remarks = _describe(maps[index], top)
        details = [result, *remarks, *_similarity(maps[index], control[index])]
        text.append(f"{': '.join(names)}, {'; '.join(details)}")
        captions = (names, ("Grad-CAM" if top is None else "patch scores", result, *remarks), _CONTROL)
        at = _peak(maps[index], images.shape[-1])
        pixels = shown(images[index], settings.data, at)
        lines.append(_tiles(pixels, captions, (maps[index], control[index]), top, at))
    write_picture(lines, out)
    return "\n".join(
        [*text, _legend(model, maps), f"{out} shows images of patients: keep it where such images may be stored"]
    )


def _refuse_windows(settings: RunSettings) -> None:
    if settings.data.dimensions == 3 and settings.evaluate.volumes == "sliding":
        raise SettingsError(
            "the classifier takes features of windows (evaluate.volumes sliding), but a map shows a whole volume;\n"
            "evaluate with evaluate.volumes=resized for a classifier that saliency can explain"
        )


def patch_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> tuple[Scores, Maps]:
    """Return the scores of one label, and the patch scores of which they are the mean.

    Args:
        classifier: Classifier that scores patches, in eval mode.
        views: (B, C, S, S), normalised.
        index: Index of the label.

    Returns:
        (B,) scores, and (B, h, w) patch scores, the highest of which average to the score.
    """
    with torch.inference_mode():
        patches = classifier.score_patches(views)
        scores = classifier.pool(patches)[:, index]
    return scores.double().cpu().numpy(), patches[:, index].cpu().numpy()


def class_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> tuple[Scores, Maps]:
    """Return the scores of one label and their Grad-CAM maps.

    A classifier that averages over an image and its mirror image has two maps; their mean is returned.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), eq. 1 and 2, by MONAI.

    Args:
        classifier: Classifier in eval mode.
        views: (B, C, S, S) or (B, C, S, S, S), normalised.
        index: Index of the label.

    Returns:
        (B,) scores, and (B, h, w) or (B, x, y, z) maps, at least 0, on the grid of the last feature map.

    Raises:
        SettingsError: the encoder does not end in a feature map of channels and positions.
    """
    with torch.inference_mode():
        scores = classifier(views)[:, index].double().cpu().numpy()
    # One forward pass per side, since MONAI's hooks would record only the last of two.
    one_sided = ClassifierNetwork(classifier.backbone, classifier.head, exclusive=classifier.exclusive).eval()
    maps = _grad_cam(one_sided, views, index)
    if classifier.mirror:
        x = 2 if views.ndim == 5 else 3  # the axis from right to left; maps have no channels
        maps = (maps + _grad_cam(one_sided, views.flip(x), index).flip(x - 1)) / 2
    return scores, maps.cpu().numpy()


def _grad_cam(classifier: ClassifierNetwork, views: Tensor, index: int) -> Tensor:
    """Return the maps of one forward pass, (B, h, w) or (B, x, y, z)."""
    from monai.visualize import GradCAM  # here, because importing MONAI takes seconds

    own = copy.deepcopy(classifier)  # MONAI leaves hooks and gradients behind
    layer = last_map(own.backbone, views[:1])
    own.backbone.net.set_submodule(layer, nn.Sequential(own.backbone.net.get_submodule(layer), _Contiguous()))
    maps: Tensor = GradCAM(own, target_layers=f"backbone.net.{layer}.1").compute_map(views, class_idx=index)
    return maps.detach()[:, 0]


class _Contiguous(nn.Module):
    """Makes a feature map and its gradient contiguous, as MONAI expects."""

    def forward(self, features: Tensor) -> Tensor:
        return features.contiguous()


def last_map(backbone: Backbone, view: Tensor) -> str:
    """Return the name of the module in `backbone.net` that outputs the last feature map.

    Args:
        backbone: Encoder in eval mode.
        view: (1, C, S, S) or (1, C, S, S, S), input for a trial.

    Raises:
        SettingsError: there is no map of channels and positions, as in a transformer, or the features are of several
            stages.
    """
    if backbone.stages > 1:
        raise SettingsError(
            f"the classifier takes features of {backbone.stages} stages (evaluate.stages), of which Grad-CAM explains"
            " only the last;\nevaluate with evaluate.stages=1 for a classifier that it can explain"
        )
    described = getattr(backbone.net, "feature_info", None)
    name = _LAST_OF_MONAI.get(backbone.name) or (described[-1]["module"] if described else None)
    if backbone.dimensions == 3:
        name = next(reversed(NETWORKS[backbone.name].layers), None)
    shapes: list[torch.Size] = []
    if name:
        module = backbone.net.get_submodule(name)
        hook = module.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        with torch.inference_mode():
            backbone(view)
        hook.remove()
    channels = described[-1]["num_chs"] if described else backbone.feature_dim
    if not name or not shapes or len(shapes[0]) != backbone.dimensions + 2 or shapes[0][1] != channels:
        raise SettingsError(
            f"{backbone.name} does not end in a feature map of channels and positions, which Grad-CAM needs;\n"
            "transformers do not. "
            + ("Use" if backbone.dimensions == 3 else "Fine-tune it with finetune.head=patches, or use")
            + " a convolutional network."
        )
    return str(name)


def random_maps(classifier: ClassifierNetwork, views: Tensor, index: int) -> Maps:
    """Return the maps, as `class_maps`, of the same classifier with a randomly initialised encoder.

    With random weights, the sign of a position's contribution is arbitrary, so class maps include both signs.
    """
    own = classifier.backbone
    model = ModelSettings(backbone=own.name)
    backbone = create_backbone(model, seed=0, size=views.shape[-1], channels=own.channels, dimensions=own.dimensions)
    if classifier.top_patches is not None:
        random = ClassifierNetwork(
            backbone.to(views.device), classifier.head, mirror=classifier.mirror, top_patches=classifier.top_patches
        )
        return patch_maps(random.eval(), views, index)[1]
    negated = copy.deepcopy(classifier.head)
    with torch.no_grad():
        negated.weight.neg_()
    both = [
        ClassifierNetwork(backbone.to(views.device), head, mirror=classifier.mirror).eval()
        for head in (classifier.head, negated)
    ]
    return class_maps(both[0], views, index)[1] + class_maps(both[1], views, index)[1]


def rank_correlation(first: Maps, second: Maps) -> float | None:
    """Return Spearman's rank correlation of two maps; None if one of them is constant.

    Source: Adebayo et al. 2018, section 3.
    """
    if any(values.min() == values.max() for values in (first, second)):
        return None
    return float(pd.Series(first.ravel()).corr(pd.Series(second.ravel()), method="spearman"))


def _describe(values: Maps, top: int | None) -> list[str]:
    """Return the range of the patch scores; of a class map, a remark if it is constant."""
    if top is None:
        if values.min() < values.max():
            return []
        return ["all positions raise the score equally" if values.any() else "no position raises the score"]
    kept = values[_highest(values, top)].min()
    return [f"patches {values.min():+.2f} to {values.max():+.2f}, averaged from {kept:+.2f}"]


def _similarity(values: Maps, control: Maps) -> list[str]:
    correlation = rank_correlation(values, control)
    return [] if correlation is None else [f"rank correlation with the control {correlation:+.2f}"]


def _legend(classifier: ClassifierNetwork, maps: Maps) -> str:
    grid = " x ".join(map(str, maps.shape[1:]))
    if classifier.top_patches is None:
        slices = "; the slices meet in the position of this value" if maps.ndim == 4 else ""
        return f"Grad-CAM: each map has {grid} positions and is scaled to its largest value{slices}"
    unit = "the class's logit before softmax" if classifier.exclusive else "the log-odds"
    return (
        f"patch scores: each map has {grid} patches, coloured from the lowest to the highest; {unit} of an image is\n"
        f"the mean of the {classifier.top_patches} outlined patches"
    )


def _truth(split: Split, position: int, label: str) -> str:
    values = split.labels[position, [name == label for name in split.label_names]]
    return f"{label} {values[0]:.0f}" if values.size and not np.isnan(values[0]) else f"{label} unknown"


def _peak(values: Maps, size: int) -> tuple[int, ...] | None:
    """Return the voxel of a volume of `size` a side in which its map is highest; None for an image."""
    if values.ndim == 2:
        return None
    place = np.unravel_index(values.argmax(), values.shape)
    return tuple(int((at + 0.5) * size / side) for at, side in zip(place, values.shape, strict=True))


def _tiles(
    pixels: NDArray[Any], captions: Sequence[Sequence[str]], maps: Sequence[Maps], top: int | None,
    at: tuple[int, ...] | None,
) -> list[Tile]:  # fmt: skip
    """Return an image alone and under each map; the highest patch scores are outlined.

    Of a volume, the pixels are three slices that meet in the voxel `at`.
    """
    plain, *others = ["\n".join(caption) for caption in captions]
    tiles = [Tile(pixels, plain)]
    for caption, values in zip(others, maps, strict=True):
        if at is not None:
            tiles.append(Tile(pixels, caption, orthogonal_slices(_overlay(values, len(pixels) // 2), at)))
        elif top is None:
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


def _overlay(values: Maps, size: int, mode: str | None = None) -> Maps:
    """Return a map resized to the image or volume, linearly by default, with a largest value of 1."""
    mode = mode or ("trilinear" if values.ndim == 3 else "bilinear")
    large = functional.interpolate(torch.from_numpy(values)[None, None], (size,) * values.ndim, mode=mode)[0, 0]
    scaled: Maps = (large / large.max().clamp(min=torch.finfo(large.dtype).tiny)).numpy()
    return scaled
