"""List the networks that `model.backbone` can name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch

import pandas as pd
import timm
import torch

from medmoco.errors import SettingsError
from medmoco.models.backbones import MONAI, build_network
from medmoco.models.interop.naming import VARIANTS
from medmoco.models.networks.volumes import NETWORKS

_SIZE = 224  # side of the views, in pixels, with which transformers are described

ADVICE = {
    "resnet10t": "for a CPU, and for a few thousand images",
    "resnet18": "for a small GPU",
    "resnet50": "for a GPU; the default, as in the MoCo papers",
    "convnext_tiny": "for a GPU; a newer convolutional network of similar size",
    "densenet121": "for a GPU; common for chest radiographs",
    "monai/densenet121": "the same with MONAI's names of tensors, for MONAI",
    "moco-v3/vit_small": "for several GPUs and large data sets, with method.name=moco_v3",
    "moco-v3/vit_conv_small": "the same with a convolutional stem, which trains more stably",
}
"""Where to start, by name."""

VOLUME_ADVICE = {
    "monai/resnet10_quarter": "a quarter of the channels; for a CPU",
    "monai/resnet10": "for a small GPU",
    "monai/resnet18": "for a GPU",
    "monai/densenet121": "for a GPU; few parameters, much memory",
    "monai/swin_unetr": "to fine-tune MONAI's SwinUNETR; feature_size 24",
    "monai/swin_unetr_48": "the same with feature_size 48, the published one",
    "nnunet/resenc": "to fine-tune nnU-Net's ResEncM, ResEncL or ResEncXL; patches of 128 to 255 voxels a side",
    "nnunet/resenc_5stages": "the same for patches of 64 to 127 voxels a side",
    "nnunet/resenc_4stages": "the same for patches of 32 to 63 voxels a side",
    "nnunet/resenc_4stages_quarter": "a quarter of its channels; for a CPU, and to segment small structures",
}
"""The same for volumes."""


def matching_names(pattern: str, dimensions: int = 2) -> list[str]:
    """Return the names that match a pattern with * and ?, or contain a text without these.

    Raises:
        SettingsError: there are none.
    """
    names, others = (NETWORKS, _names_for_images()) if dimensions == 3 else (_names_for_images(), NETWORKS)
    found = _matching(pattern, names)
    if not found and _matching(pattern, others):
        kind, other, needed = ("volumes", "images", 2) if dimensions == 3 else ("images", "volumes", 3)
        raise SettingsError(
            f"no network for {kind} matches {pattern!r}, but some for {other} do; set dimensions to {needed}"
        )
    if not found:
        close = difflib.get_close_matches(pattern, names, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise SettingsError(
            f"no network matches {pattern!r}{hint}\nA pattern is a part of a name, such as resnet, or vit_*_224."
        )
    return found


def _names_for_images() -> list[str]:
    return [*(f"monai/{name}" for name in sorted(MONAI)), *VARIANTS, *timm.list_models()]


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    wildcard = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [name for name in names if fnmatch(name.lower(), wildcard.lower())]


def list_models(pattern: str = "", *, limit: int | None = 30, dimensions: int = 2) -> pd.DataFrame:
    """List networks that `model.backbone` can name: those of timm, monai/* and moco-v3/*, for volumes others.

    Args:
        pattern: Part of the name, or a pattern with * and ?. Without one, the list is a short selection with advice.
        limit: Largest number of rows; None for all that match, which takes about a second for ten of them.
        dimensions: 2 for networks for images, 3 for those for volumes, see `data.dimensions`.

    Returns:
        A row per network: `name`; `parameters` in millions and the width of the `features`, both for one channel and
        missing if they are not known without creating the network; `advice`, blank for most.

    Raises:
        SettingsError: no network matches.

    Examples:
        >>> import medmoco
        >>> medmoco.list_models("resnet10t")[["name", "features"]].to_dict("records")
        [{'name': 'resnet10t', 'features': 512}]
    """
    names = matching_names(pattern, dimensions) if pattern or dimensions == 3 else list(ADVICE)
    table = pd.DataFrame([_describe(name, dimensions) for name in names[:limit]])
    return table.astype({"features": "Int64"})


def _describe(name: str, dimensions: int) -> dict[str, object]:
    parameters, width = None, None
    try:
        # Shapes without memory. The networks for volumes are few, and some compute while they are created.
        with torch.device("cpu" if dimensions == 3 else "meta"):
            network, width, _ = build_network(name, _SIZE, 1, dimensions)
        parameters = round(sum(weights.numel() for weights in network.parameters()) / 1e6, 1)
    except Exception:  # noqa: S110 - some networks compute with their weights while they are created
        pass
    advice = VOLUME_ADVICE if dimensions == 3 else ADVICE
    return {"name": name, "parameters": parameters, "features": width, "advice": advice.get(name, "")}
