"""Checkpoint formats of known projects: the location of the encoder, other content, and the preprocessing.

A format is identified by the prefix of the encoder's tensor names. The names themselves are independent of it
(naming.py), since one project may train networks of several libraries.

Source: the code of the projects; keys as joined by state_dicts.py, with "/" between nested mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Preparation:
    """The normalisation of gray images in the source's training."""

    mean: float | None  # mean subtracted from pixels, as fractions of white; None if it is unknown
    std: float | None  # standard deviation by which they are then divided; None if it is unknown
    note: str
    size: int | None = None  # side of the images, in pixels; None if it is unknown


_IMAGENET = Preparation(
    0.449,
    0.226,
    "RGB scaled to 0..1, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]; their averages for gray images",
)
_UNKNOWN = Preparation(None, None, "unknown; networks pretrained on ImageNet mostly use mean 0.449 and std 0.226")


@dataclass(frozen=True)
class Scheme:
    """A checkpoint format."""

    name: str
    query: str  # pattern of the prefix of the trained encoder's names
    key: str | None  # the same for its moving average; None if there is none
    preparation: Preparation  # normalisation of gray images
    marker: str = ""  # pattern that some key of such a file must begin with, if `query` alone is ambiguous
    also: str = ""  # another such pattern
    naming: str | None = None  # the only naming in such files, if it is known (naming.py)
    head: str = "projector"  # type of the layers after the encoder


# Prefixes that torch.compile, FSDP, activation checkpointing and Lightning Fabric add to the names of wrapped modules
# anywhere in a network; and that of DataParallel, which is also an ordinary name.
_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
_WRAPS = rf"(?:(?:module|{_WRAPPERS})\.)*"

# What may precede a network: a mapping in the file, wrappers, the name of a Lightning module.
_OUTER = (
    r"(?:(?:state_dict|model_state_dict|model_state|model|network|net)/)*"
    rf"(?:(?:module|{_WRAPPERS}|model|net)\.)*"
)

_DINOV2 = rf"{_OUTER}(?:teacher/)?(?:(?:dinov2|dinov2_with_registers|backbone)\.)?{_WRAPS}"
_DINOV2_MARKS = (
    rf"{_DINOV2}(?:embeddings\.)?mask_token",
    rf"{_DINOV2}(?:blocks|encoder\.layer)\.0\.(?:ls|layer_scale)1",
)

# If several match equally many keys, the first one is used.
SCHEMES = (
    Scheme("medmoco", r"(?:model/)?query_encoder\.backbone\.net\.", r"(?:model/)?key_encoder\.backbone\.net\.",
           Preparation(None, None, "views.mean and views.std of the run")),
    Scheme("moco", rf"{_OUTER}encoder_q\.{_WRAPS}", rf"{_OUTER}encoder_k\.{_WRAPS}", _IMAGENET),
    Scheme("moco-cxr", rf"{_OUTER}encoder_q\.{_WRAPS}", rf"{_OUTER}encoder_k\.{_WRAPS}",
           Preparation(0.502, 0.0856, "gray scaled to 0..1, mean 0.5020, std 0.085585, repeated three times")),
    Scheme("moco-v3", rf"{_OUTER}base_encoder\.{_WRAPS}", rf"{_OUTER}momentum_encoder\.{_WRAPS}", _IMAGENET),
    Scheme("bl0", rf"model/{_WRAPS}", rf"model_ema/{_WRAPS}", _IMAGENET, marker="contrast/"),
    Scheme("lightly", rf"{_OUTER}backbone\.{_WRAPS}(?:vit\.)?",
           rf"{_OUTER}backbone_momentum\.{_WRAPS}(?:vit\.)?", _IMAGENET, marker=rf"{_OUTER}backbone_momentum\."),
    Scheme("solo-learn", rf"{_OUTER}(?:backbone|encoder)\.{_WRAPS}",
           rf"{_OUTER}momentum_(?:backbone|encoder)\.{_WRAPS}", _IMAGENET,
           marker=rf"{_OUTER}momentum_(?:backbone|encoder)\."),
    Scheme("tensorflow", "", "momentum_encoder/", _IMAGENET, marker="conv0/W", naming="tensorflow"),
    Scheme("detectron2", rf"{_OUTER}(?:backbone\.)?{_WRAPS}(?:bottom_up\.)?{_WRAPS}", None,
           Preparation(None, None, "given by the detector's INPUT.FORMAT, PIXEL_MEAN and PIXEL_STD"),
           naming="detectron2", head="classifier"),
    Scheme("dinov2", _DINOV2, None, replace(_IMAGENET, size=518), *_DINOV2_MARKS),
    Scheme("rad-dino", _DINOV2, None,
           Preparation(0.5307, 0.2583, "gray scaled to 0..1, mean 0.5307, std 0.2583, repeated three times;"
                       " shorter side scaled to 518 pixels, the middle 518 x 518 cut out", 518), *_DINOV2_MARKS),
    Scheme("plain", rf"{_OUTER}(?:(?:encoder|backbone|base_model|feature_extractor|trunk|net|module|{_WRAPPERS})\.)*",
           rf"(?:state_dict_ema|model_ema|ema)/{_WRAPS}", _UNKNOWN, head="classifier"),
)  # fmt: skip

NAMES = tuple(scheme.name for scheme in SCHEMES)

# Reasons for omitting keys, other than by pattern.
AS_ASKED, OTHER = "as asked", "other encoder"

_HEAD = r"(_?fc|head|heads|classifier|linear|last_linear|class_layers|head_dist)\."

# Content that is omitted on purpose: (pattern of the whole key, type), tried in this order, after the encoder's names.
_OTHER_CONTENT = (
    (r"^(optimizer|optimizer_states|optim|opt)\w*/", "optimiser"),
    (r"/(Momentum|Adam|Adam_1)$|^beta[12]_power$", "optimiser"),
    (
        r"^(scaler|amp|amp_scaler|lr_schedulers?|schedulers?|callbacks|loops|rng\w*|\w+_rng\w*)/",
        "state of the training",
    ),
    (r"^(global_step|learning_rate|EMA/.*|.*-summary(/.*)?)$", "state of the training"),
    (r"(^|[./])(queue(_ptr)?|pointer|memory_bank|bank|memory)$|^contrast/|memory_bank", "queue"),
    (r"(^|[./])(momentum_)?(projector|projection_head\w*|predictor|prediction_head\w*)[./]", "projector"),
    (r"^(momentum_encoder/)?linear\d+_\d+/[Wb]$", "projector"),
    (r"(^|[./])(fpn_|proposal_generator\.|roi_heads\.|head\.cls_|head\.bbox_)|(^|[./])pixel_(mean|std)$", "detector"),
    (r"(^|[./])(teacher|student)/\w+_head\.|(^|[./])mask_token$", "pretraining head"),
    (rf"(^|[./])(momentum_classifier|online_\w+|linear_cls)[./]|^{_OUTER}{_HEAD}", "classifier"),
)


def unwrapped(end: str) -> str:
    """Return a key without its prefix, with the names of wrappers inside the network removed."""
    return re.sub(rf"(?<=[./])(?:{_WRAPPERS})\.", "", end)


def prefixes(keys: Iterable[str]) -> set[str]:
    """Return all possible prefixes of a network's tensor names in these keys."""
    cuts = {key[: match.end()] for key in keys for match in re.finditer(r"[./]", key)}
    return {"", *cuts}


def roles(scheme: Scheme, keys: Iterable[str], candidates: set[str]) -> dict[str, list[str]]:
    """Return the possible prefixes of the encoders in this format, by "query" and "key"."""
    if not all(any(re.match(marker, key) for key in keys) for marker in (scheme.marker, scheme.also)):
        return {}
    patterns = {"query": scheme.query, "key": scheme.key}
    return {
        role: sorted(prefix for prefix in candidates if re.fullmatch(pattern, prefix))
        for role, pattern in patterns.items()
        if pattern is not None
    }


def asked_out(key: str, leave_out: tuple[str, ...]) -> bool:
    """Return whether a key matches one of the user's patterns of keys to omit, with `*`."""
    return any(fnmatchcase(key, pattern) for pattern in leave_out)


def other_content(key: str, prefix: str, scheme: Scheme, leave_out: tuple[str, ...]) -> str | None:
    """Return the type of a key that belongs to no encoder, or None if it is unknown.

    `prefix` is that of the requested encoder; keys that match a pattern of `leave_out` are omitted as asked.
    """
    if asked_out(key, leave_out):
        return AS_ASKED
    if key.startswith(prefix) and re.match(_HEAD, key[len(prefix) :]):
        return scheme.head
    return next((what for pattern, what in _OTHER_CONTENT if re.search(pattern, key)), None)
