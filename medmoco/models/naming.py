"""Names that libraries give to the tensors of one and the same network, and how each turns into the others.

timm's names are the hub: for each kind of network and each other naming there is a table of (timm's, theirs). A name
that ends in a dot stands for a layer, whose tensors are called alike on both sides; `*` stands for a number, the same
on both sides. Every table is one to one, so it is read in both directions.

Source: the state dicts of the libraries themselves; variables of TensorFlow as ppwwyyxx/moco.tensorflow saves them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from medmoco.errors import CheckpointError

Rows = tuple[tuple[str, str], ...]

_STAGES = (1, 2, 3, 4)
_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean/EMA", "running_var": "variance/EMA"}


def _same(*names: str) -> Rows:
    return tuple((name, name) for name in names)


def _tensorflow_norm(timm: str, theirs: str) -> Rows:
    return tuple((f"{timm}.{ours}", f"{theirs}/{name}") for ours, name in _BATCH_NORM.items())


def _resnet(stem: Rows, stages: str, first: int, layers: Rows, head: Rows) -> Rows:
    """Return rows for a stem, four stages of blocks with the same layers, numbered from `first`, and a classifier."""
    blocks = (
        (f"layer{stage}.*.{ours}", stages.format(first + stage - 1, theirs))
        for stage in _STAGES
        for ours, theirs in layers
    )
    return (*stem, *blocks, *head)


_RESNET_LAYERS = _same("conv*.", "bn*.", "downsample.0.", "downsample.1.")

_DENSENET_OUTSIDE = _same(
    "features.conv0.", "features.norm0.", "features.transition*.norm.", "features.transition*.conv.", "features.norm5."
)
_DENSE_LAYER = "features.denseblock*.denselayer*"

# kind of network -> naming -> (timm's name, theirs)
TABLES: dict[str, dict[str, Rows]] = {
    "resnet": {
        "torchvision": _resnet(_same("conv1.", "bn1."), "layer{}.*.{}", 1, _RESNET_LAYERS, _same("fc.")),
        # the children of torchvision's network in a Sequential without its classifier: relu is 2, the pooling 3
        "sequential": _resnet((("conv1.", "0."), ("bn1.", "1.")), "{}.*.{}", 4, _RESNET_LAYERS, ()),
        "detectron2": _resnet(
            (("conv1.", "stem.conv1."), ("bn1.", "stem.conv1.norm.")),
            "res{}.*.{}",
            2,
            (
                ("conv*.", "conv*."),
                ("bn*.", "conv*.norm."),
                ("downsample.0.", "shortcut."),
                ("downsample.1.", "shortcut.norm."),
            ),
            (("fc.", "linear."),),
        ),
        "tensorflow": _resnet(
            (("conv1.weight", "conv0/W"), *_tensorflow_norm("bn1", "conv0_bn")),
            "group{}/block*/{}",
            0,
            (
                ("conv*.weight", "conv*/W"),
                *_tensorflow_norm("bn*", "conv*_bn"),
                ("downsample.0.weight", "convshortcut/W"),
                *_tensorflow_norm("downsample.1", "convshortcut_bn"),
            ),
            (),
        ),
    },
    "densenet": {
        "torchvision": (*_DENSENET_OUTSIDE, *_same(f"{_DENSE_LAYER}.norm*.", f"{_DENSE_LAYER}.conv*.", "classifier.")),
        # the files that torchvision still publishes, from before its layers were named norm1, conv1, norm2, conv2
        "torchvision_2017": (
            *_DENSENET_OUTSIDE,
            (f"{_DENSE_LAYER}.norm*.", f"{_DENSE_LAYER}.norm.*."),
            (f"{_DENSE_LAYER}.conv*.", f"{_DENSE_LAYER}.conv.*."),
            ("classifier.", "classifier."),
        ),
        "monai": (
            *_DENSENET_OUTSIDE,
            (f"{_DENSE_LAYER}.norm*.", f"{_DENSE_LAYER}.layers.norm*."),
            (f"{_DENSE_LAYER}.conv*.", f"{_DENSE_LAYER}.layers.conv*."),
            ("classifier.", "class_layers.out."),
        ),
    },
    "vit": {
        "torchvision": (
            ("cls_token", "class_token"),
            ("pos_embed", "encoder.pos_embedding"),
            ("patch_embed.proj.", "conv_proj."),
            ("blocks.*.norm1.", "encoder.layers.encoder_layer_*.ln_1."),
            ("blocks.*.attn.qkv.weight", "encoder.layers.encoder_layer_*.self_attention.in_proj_weight"),
            ("blocks.*.attn.qkv.bias", "encoder.layers.encoder_layer_*.self_attention.in_proj_bias"),
            ("blocks.*.attn.proj.", "encoder.layers.encoder_layer_*.self_attention.out_proj."),
            ("blocks.*.norm2.", "encoder.layers.encoder_layer_*.ln_2."),
            ("blocks.*.mlp.fc1.", "encoder.layers.encoder_layer_*.mlp.0."),
            ("blocks.*.mlp.fc2.", "encoder.layers.encoder_layer_*.mlp.3."),
            ("norm.", "encoder.ln."),
            ("head.", "heads.head."),
        ),
    },
    "convnext": {
        "torchvision": (
            ("stem.*.", "features.0.*."),
            *((f"stages.{stage}.downsample.*.", f"features.{2 * stage}.*.") for stage in _STAGES[:3]),
            *(
                (f"stages.{stage - 1}.blocks.*.{ours}", f"features.{2 * stage - 1}.*.{theirs}")
                for stage in _STAGES
                for ours, theirs in (
                    ("gamma", "layer_scale"),
                    ("conv_dw.", "block.0."),
                    ("norm.", "block.2."),
                    ("mlp.fc1.", "block.3."),
                    ("mlp.fc2.", "block.5."),
                )
            ),
            ("head.norm.", "classifier.0."),
            ("head.fc.", "classifier.2."),
        ),
    },
}

_KINDS = {
    "resnet": r"(monai/)?(wide_)?res(net|next)\d",
    "densenet": r"(monai/)?densenet\d",
    "vit": r"vit_",
    "convnext": r"convnext",
}


def kind_of(backbone: str) -> str | None:
    """Return the kind of network that has a table, by the backbone's name; None if there is none."""
    return next((kind for kind, pattern in _KINDS.items() if re.match(pattern, backbone)), None)


def rename(state: Mapping[str, Tensor], backbone: str, source: str, target: str) -> dict[str, Tensor]:
    """Return a state dict under the names of another library; layouts of tensors that differ are converted.

    Args:
        state: Names of `source` -> tensors, with or without the classifier.
        backbone: As in `model.backbone`.
        source: "timm" or a naming in `TABLES`.
        target: The same.

    Raises:
        CheckpointError: the network has no such names, or a tensor has none there.
    """
    kind = kind_of(backbone)
    known = {"timm", *TABLES.get(kind or "", ())}
    for naming in (source, target):
        if naming not in known:
            raise CheckpointError(f"{backbone} has no names of {naming}; there are: {', '.join(sorted(known))}")
    tables = TABLES[kind] if kind else {}
    there = {} if source == "timm" else {theirs: ours for ours, theirs in tables[source]}
    back = {} if target == "timm" else dict(tables[target])
    found = {}
    for key, value in state.items():
        hub = translate(key, there) if there else key
        name = translate(hub, back) if back and hub else hub
        if name is None:
            naming = source if hub is None else target
            raise CheckpointError(f"{key} of {backbone} has no name in {naming}: it is another network there")
        found[name] = to_layout(to_timm_layout(value, source, key), target, name)
    return found


def translate(key: str, names: Mapping[str, str]) -> str | None:
    """Return a tensor's name on the other side of a table, None if no row fits.

    Args:
        key: The name on this side.
        names: This side -> the other.
    """
    for this, other in names.items():
        numbers = re.fullmatch(_pattern(this), key)
        if numbers:
            return "".join(_filled(other, [*numbers.groups()]))
    return None


def _pattern(name: str) -> str:
    leaf = r"([^./]+)" if name.endswith(".") else ""
    return re.escape(name).replace(r"\*", r"(\d+)") + leaf


def _filled(name: str, groups: list[str]) -> Iterator[str]:
    first, *rest = name.split("*")
    yield first
    for group, text in zip(groups, rest, strict=False):
        yield group + text
    if name.endswith("."):
        yield groups[-1]


def to_timm_layout(value: Tensor, source: str, name: str) -> Tensor:
    """Return a tensor as timm lays it out, contiguous.

    Args:
        value: As `source` lays it out.
        source: Naming.
        name: The tensor's name there.
    """
    if source == "tensorflow" and value.ndim == 4:
        value = value.permute(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
    if name.endswith("layer_scale"):
        value = value.flatten()
    return value.contiguous()


def to_layout(value: Tensor, target: str, name: str) -> Tensor:
    """Return a tensor of timm's layout as `target` lays out what it calls `name`."""
    if target == "tensorflow" and value.ndim == 4:
        value = value.permute(2, 3, 1, 0)
    if name.endswith("layer_scale"):
        value = value[:, None, None]
    return value.contiguous()
