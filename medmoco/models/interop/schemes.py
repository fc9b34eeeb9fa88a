"""Who writes which files: where in a checkpoint the encoder is, what stands beside it, how its images were prepared.

A scheme is known by what stands before the names of the encoder's tensors. Which names those are is another question
(models/naming.py): one project trains networks of several libraries.

Source: the code of the projects; keys as models/state_dicts.py joins them, with "/" between nested mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Preparation:
    """How the pixels of a gray image were fed in the source's training.

    Attributes:
        mean: Subtracted from pixels as shares of white; None if the file does not tell.
        std: Divides them then.
        note: In words.
    """

    mean: float | None
    std: float | None
    note: str


_IMAGENET = Preparation(
    0.449,
    0.226,
    "RGB as shares of white, minus [0.485, 0.456, 0.406], by [0.229, 0.224, 0.225]; of a gray image their means",
)
_UNTOLD = Preparation(None, None, "the file does not tell; networks pretrained on ImageNet mostly want 0.449 and 0.226")


@dataclass(frozen=True)
class Scheme:
    """One way of writing checkpoints.

    Attributes:
        name: Short.
        query: Pattern of what stands before the trained encoder's names.
        key: The same of its moving average; None where there is none.
        marker: Pattern that begins some key of such a file, where `query` alone does not tell.
        naming: The only one, where it is known (models/naming.py).
        preparation: Of a gray image.
        head: What the layers behind the encoder are.
    """

    name: str
    query: str
    key: str | None
    preparation: Preparation
    marker: str = ""
    naming: str | None = None
    head: str = "projector"


# What torch.compile, FSDP, checkpointing of activations and Lightning Fabric put before the names of what they wrap,
# wherever in a network that is; and DataParallel, whose word is also a name.
_WORDS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
_WRAPS = rf"(?:(?:module|{_WORDS})\.)*"

# What stands before a network: a mapping in the file, wraps, a Lightning module's name.
_OUTER = (
    r"(?:(?:state_dict|model_state_dict|model_state|model|network|net)/)*"
    rf"(?:(?:module|{_WORDS}|model|net)\.)*"
)

# Tried in this order where several explain as much.
SCHEMES = (
    Scheme("medmoco", r"(?:model/)?query_encoder\.backbone\.net\.", r"(?:model/)?key_encoder\.backbone\.net\.",
           Preparation(None, None, "views.mean and views.std of the run")),
    Scheme("moco", rf"{_OUTER}encoder_q\.{_WRAPS}", rf"{_OUTER}encoder_k\.{_WRAPS}", _IMAGENET),
    Scheme("moco-cxr", rf"{_OUTER}encoder_q\.{_WRAPS}", rf"{_OUTER}encoder_k\.{_WRAPS}",
           Preparation(0.502, 0.0856, "gray as shares of white, minus 0.5020, by 0.085585, repeated three times")),
    Scheme("moco-v3", rf"{_OUTER}base_encoder\.{_WRAPS}", rf"{_OUTER}momentum_encoder\.{_WRAPS}", _IMAGENET),
    Scheme("bl0", rf"model/{_WRAPS}", rf"model_ema/{_WRAPS}", _IMAGENET, marker="contrast/"),
    Scheme("lightly", rf"{_OUTER}backbone\.{_WRAPS}(?:vit\.)?",
           rf"{_OUTER}backbone_momentum\.{_WRAPS}(?:vit\.)?", _IMAGENET, marker=rf"{_OUTER}backbone_momentum\."),
    Scheme("solo-learn", rf"{_OUTER}(?:backbone|encoder)\.{_WRAPS}",
           rf"{_OUTER}momentum_(?:backbone|encoder)\.{_WRAPS}", _IMAGENET,
           marker=rf"{_OUTER}momentum_(?:backbone|encoder)\."),
    Scheme("tensorflow", "", "momentum_encoder/", _IMAGENET, marker="conv0/W", naming="tensorflow"),
    Scheme("detectron2", rf"{_OUTER}(?:backbone\.)?{_WRAPS}(?:bottom_up\.)?{_WRAPS}", None,
           Preparation(None, None, "as the detector's INPUT.FORMAT, PIXEL_MEAN and PIXEL_STD say"),
           naming="detectron2", head="classifier"),
    Scheme("plain", rf"{_OUTER}(?:(?:encoder|backbone|base_model|feature_extractor|trunk|net|module|{_WORDS})\.)*",
           rf"(?:state_dict_ema|model_ema|ema)/{_WRAPS}", _UNTOLD, head="classifier"),
)  # fmt: skip

NAMES = tuple(scheme.name for scheme in SCHEMES)

# Why keys are left out that a pattern does not tell.
AS_ASKED, OTHER = "as asked", "other encoder"

_HEAD = r"(fc|head|heads|classifier|linear|last_linear|class_layers|head_dist)\."

# Left out on purpose: pattern of the whole key -> what it is. Searched in this order, after the encoder's own names.
_BESIDE = (
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
    (rf"(^|[./])(momentum_classifier|online_\w+|linear_cls)[./]|^{_OUTER}{_HEAD}", "classifier"),
)


def unwrapped(end: str) -> str:
    """Return what is behind a prefix without the words of what wraps layers inside the network."""
    return re.sub(rf"(?<=[./])(?:{_WORDS})\.", "", end)


def prefixes(keys: Iterable[str]) -> set[str]:
    """Return whatever could stand before the names of a network's tensors in these keys."""
    cuts = {key[: match.end()] for key in keys for match in re.finditer(r"[./]", key)}
    return {"", *cuts}


def roles(scheme: Scheme, keys: Iterable[str], candidates: set[str]) -> dict[str, list[str]]:
    """Return what may stand before the encoders' names if a file is of this scheme: "query" and "key" -> prefixes."""
    if not any(re.match(scheme.marker, key) for key in keys):
        return {}
    patterns = {"query": scheme.query, "key": scheme.key}
    return {
        role: sorted(prefix for prefix in candidates if re.fullmatch(pattern, prefix))
        for role, pattern in patterns.items()
        if pattern is not None
    }


def asked_out(key: str, leave_out: tuple[str, ...]) -> bool:
    """Say whether the user does not want a key, by patterns with `*`."""
    return any(fnmatchcase(key, pattern) for pattern in leave_out)


def beside(key: str, prefix: str, scheme: Scheme, leave_out: tuple[str, ...]) -> str | None:
    """Say what a key is that belongs to no encoder; None if nobody knows.

    Args:
        key: Whole.
        prefix: What stands before the wanted encoder's names.
        scheme: Of the file.
        leave_out: Patterns of keys that the user does not want, with `*`.
    """
    if asked_out(key, leave_out):
        return AS_ASKED
    if key.startswith(prefix) and re.match(_HEAD, key[len(prefix) :]):
        return scheme.head
    return next((what for pattern, what in _BESIDE if re.search(pattern, key)), None)
