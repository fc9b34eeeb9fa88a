"""List the networks that `model.backbone` can name."""

from __future__ import annotations

import difflib
from fnmatch import fnmatch

import pandas as pd
import timm
import torch

from medmoco.errors import SettingsError
from medmoco.models.backbones import MONAI, build_network
from medmoco.models.interop.naming import VARIANTS

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


def matching_names(pattern: str) -> list[str]:
    """Return the names that match a pattern with * and ?, or contain a text without these.

    Raises:
        SettingsError: there are none.
    """
    names = [*(f"monai/{name}" for name in sorted(MONAI)), *VARIANTS, *timm.list_models()]
    wildcard = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = [name for name in names if fnmatch(name.lower(), wildcard.lower())]
    if not found:
        close = difflib.get_close_matches(pattern, names, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise SettingsError(
            f"no network matches {pattern!r}{hint}\nA pattern is a part of a name, such as resnet, or vit_*_224."
        )
    return found


def list_models(pattern: str = "", *, limit: int | None = 30) -> pd.DataFrame:
    """List networks that `model.backbone` can name: those of timm, monai/* and moco-v3/*.

    Args:
        pattern: Part of the name, or a pattern with * and ?. Without one, the list is a short selection with advice.
        limit: Largest number of rows; None for all that match, which takes about a second for ten of them.

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
    names = matching_names(pattern) if pattern else list(ADVICE)
    table = pd.DataFrame([_describe(name) for name in names[:limit]])
    return table.astype({"features": "Int64"})


def _describe(name: str) -> dict[str, object]:
    parameters, width = None, None
    try:
        with torch.device("meta"):  # shapes without memory
            network, width, _ = build_network(name, _SIZE, 1)
        parameters = round(sum(weights.numel() for weights in network.parameters()) / 1e6, 1)
    except Exception:  # noqa: S110 - some networks compute with their weights while they are created
        pass
    return {"name": name, "parameters": parameters, "features": width, "advice": ADVICE.get(name, "")}
