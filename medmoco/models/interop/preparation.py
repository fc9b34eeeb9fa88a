"""How the source of a weights file prepared its images: as stated next to the file, by its format, or as published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.models import get_pretrained_cfg

from medmoco.models.interop.detect_format import Found
from medmoco.models.interop.naming import timm_model
from medmoco.models.interop.schemes import Preparation
from medmoco.utils.files import sha256_of

ENCODER, FACTS = "encoder.safetensors", "import.json"
"""Files written by `medmoco import`."""

# Source: MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py in tensorflow/tpu.
_LITE = Preparation(round(127 / 255, 6), round(128 / 255, 6), "(pixel - 127) / 128 for RGB from 0 to 255", 224)


def preparation_of(file: Path, found: Found, backbone: str) -> Preparation:
    """Return how images were prepared for the encoder in a file; mean and std are None if that is unknown.

    A network's name alone does not tell: timm's ViT-B/16, for example, has been published with three normalisations.

    Args:
        file: The weights file.
        found: The encoder in it.
        backbone: Name of its network.
    """
    stated = _stated(file, backbone)
    if stated or found.scheme.preparation.mean is not None:
        return stated or found.scheme.preparation
    if found.naming == "efficientnet" and backbone == "tf_efficientnet_lite0":
        return _LITE
    return _published(file, backbone) or found.scheme.preparation


def _stated(file: Path, backbone: str) -> Preparation | None:
    """Return what the file's folder states: written by `medmoco import`, or downloaded from a hub of models."""
    readers: dict[str, Callable[[Any], Preparation | None]] = {
        FACTS: lambda facts: _of_import(facts) if file.name == ENCODER else None,
        "preprocessor_config.json": _of_processor,
        "config.json": lambda facts: (
            _of_timm(facts["pretrained_cfg"], "config.json")
            if facts["architecture"] == timm_model(backbone)[0]
            else None
        ),
    }
    for name, read in readers.items():
        try:
            found = read(json.loads((file.parent / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # it is missing, or another program's file of this name
        if found and found.mean is not None:
            return found
    return None


def _of_import(facts: Any) -> Preparation:
    own = facts["preparation"]
    return Preparation(own["mean"], own["std"], own["note"], own.get("size"))


def _of_processor(facts: Any) -> Preparation:
    """Return what an image processor of Hugging Face's transformers does."""
    cropped = facts.get("do_center_crop", False)
    size = facts["crop_size" if cropped else "size"]
    side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
    how = f", the middle {side} x {side} pixels cut out" if cropped else f", {side} pixels"
    return _averaged(facts["image_mean"], facts["image_std"], side, f"stated by preprocessor_config.json{how}")


def _of_timm(facts: Any, source: str) -> Preparation:
    """Return the preparation in timm's description of pretrained weights."""
    side, share = facts["input_size"][-1], facts["crop_pct"]
    cut = "" if share == 1 else f", the middle {100 * share:g} % of the shorter side"
    return _averaged(facts["mean"], facts["std"], side, f"stated by {source}: {side} x {side} pixels{cut}")


def _averaged(means: Sequence[float], stds: Sequence[float], side: int, note: str) -> Preparation:
    mean, std = (round(float(np.mean(values)), 6) for values in (means, stds))
    if not (0 <= mean <= 1 and std > 0 and isinstance(side, int)):
        raise ValueError
    words = f"{note}; RGB scaled to 0..1, mean {list(means)}, std {list(stds)}"
    return Preparation(mean, std, f"{words}{'; their averages for gray images' if len({*means}) > 1 else ''}", side)


def _published(file: Path, backbone: str) -> Preparation | None:
    """Return timm's description of a published file, recognised by its name, which ends in its hash, and the hash."""
    name, _ = timm_model(backbone)
    digest = re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name)
    for model in timm.list_models(f"{name}.*", pretrained=True) if digest else ():
        published: Any = get_pretrained_cfg(model)
        if (published.url or "").endswith(f"/{file.name}") and digest and sha256_of(file).startswith(digest[1]):
            return _of_timm(vars(published), f"timm for {file.name}")
    return None
