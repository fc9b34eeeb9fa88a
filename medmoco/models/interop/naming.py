"""Translate between the tensor names that different libraries use for the same network.

timm's names are the hub: for each type of network and each other naming there is a table of (timm's, theirs). A name
that ends in a dot stands for a layer, whose tensors have the same names on both sides; `*` stands for a number, the
same on both sides; `#0`, `#1` and so on are the parts of a tensor that the other library splits (layouts.py). Every
table is one-to-one, so it can be read in both directions.

Source: the state dicts of the libraries themselves; variables of TensorFlow as ppwwyyxx/moco.tensorflow saves them;
"efficientnet" are the names of lukemelas/EfficientNet-PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from medmoco.errors import CheckpointError
from medmoco.models.interop.layouts import arranged, from_hub_layout, split_parts

Rows = tuple[tuple[str, str], ...]

_STAGES = (1, 2, 3, 4)
_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean/EMA", "running_var": "variance/EMA"}


def _same(*names: str) -> Rows:
    return tuple((name, name) for name in names)


def _tensorflow_norm(timm: str, theirs: str) -> Rows:
    return tuple((f"{timm}.{ours}", f"{theirs}/{name}") for ours, name in _BATCH_NORM.items())


def _resnet(stem: Rows, stages: str, first: int, layers: Rows, head: Rows) -> Rows:
    """Return rows for a stem, four stages of blocks with equal layers, numbered from `first`, and a classifier."""
    blocks = (
        (f"layer{stage}.*.{ours}", stages.format(first + stage - 1, theirs))
        for stage in _STAGES
        for ours, theirs in layers
    )
    return (*stem, *blocks, *head)


def _efficientnet() -> Rows:
    """Return rows for EfficientNet-B0 and -Lite0, whose blocks are numbered through all stages.

    Blocks of the first stage have no expansion; those of Lite0 have no squeeze-and-excitation.
    """
    squeeze = (("se.conv_reduce.", "_se_reduce."), ("se.conv_expand.", "_se_expand."))
    separable = (("conv_dw.", "_depthwise_conv."), ("bn1.", "_bn1."), ("conv_pw.", "_project_conv."), ("bn2.", "_bn2."))
    inverted = (
        ("conv_pw.", "_expand_conv."), ("bn1.", "_bn0."), ("conv_dw.", "_depthwise_conv."), ("bn2.", "_bn1."),
        ("conv_pwl.", "_project_conv."), ("bn3.", "_bn2."),
    )  # fmt: skip
    places = [(stage, block) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)]
    blocks = (
        (f"blocks.{stage}.{block}.{ours}", f"_blocks.{number}.{theirs}")
        for number, (stage, block) in enumerate(places)
        for ours, theirs in (*(inverted if stage else separable), *squeeze)
    )
    stem, head = (("conv_stem.", "_conv_stem."), ("bn1.", "_bn0.")), (("conv_head.", "_conv_head."), ("bn2.", "_bn1."))
    return (*stem, *blocks, *head, ("classifier.", "_fc."))


_DINOV2_LAYERS = ("norm1.", "attn.qkv.", "attn.proj.", "ls1.gamma", "norm2.", "mlp.fc1.", "mlp.fc2.", "ls2.gamma")

_RESNET_LAYERS = _same("conv*.", "bn*.", "downsample.0.", "downsample.1.")

_DENSENET_OUTSIDE = _same(
    "features.conv0.", "features.norm0.", "features.transition*.norm.", "features.transition*.conv.", "features.norm5."
)
_DENSE_LAYER = "features.denseblock*.denselayer*"

# type of network -> naming -> (timm's name, theirs)
TABLES: dict[str, dict[str, Rows]] = {
    "resnet": {
        "torchvision": _resnet(_same("conv1.", "bn1."), "layer{}.*.{}", 1, _RESNET_LAYERS, _same("fc.")),
        # torchvision's network as a Sequential of its children without the classifier: relu is 2, the pooling 3
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
        # files that torchvision still publishes, from before its layers were renamed norm1, conv1, norm2, conv2
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
        )
    },
    "dinov2": {
        # facebookresearch/dinov2 has timm's names, except for the registers
        "dinov2": (
            *_same("cls_token", "pos_embed", "patch_embed.proj.", "norm."),
            ("reg_token", "register_tokens"),
            *_same(*(f"blocks.*.{name}" for name in _DINOV2_LAYERS)),
        ),
        # Dinov2Model and Dinov2WithRegistersModel of Hugging Face's transformers
        "transformers": (
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("reg_token", "embeddings.register_tokens"),
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            *(
                (f"blocks.*.attn.qkv.{leaf}#{part}", f"encoder.layer.*.attention.attention.{name}.{leaf}")
                for part, name in enumerate(("query", "key", "value"))
                for leaf in ("weight", "bias")
            ),
            *(
                (f"blocks.*.{ours}", f"encoder.layer.*.{theirs}")
                for ours, theirs in (
                    ("norm1.", "norm1."),
                    ("attn.proj.", "attention.output.dense."),
                    ("ls1.gamma", "layer_scale1.lambda1"),
                    ("norm2.", "norm2."),
                    ("mlp.fc1.", "mlp.fc1."),
                    ("mlp.fc2.", "mlp.fc2."),
                    ("ls2.gamma", "layer_scale2.lambda1"),
                )
            ),
            ("norm.", "layernorm."),
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
        )
    },
    "efficientnet": {"efficientnet": _efficientnet()},
}

_KINDS = {
    "resnet": r"(wide_)?res(net|next)\d",
    "densenet": r"(monai/)?densenet\d",
    "dinov2": r"vit_\w+_dinov2$",
    "vit": r"(moco-v3/)?vit_(?!conv_)",
    "convnext": r"convnext_",
    "efficientnet": r"tf_efficientnet_(b0|lite0)$",  # its weights need TensorFlow's padding
}

# Variants of timm's networks: name -> timm's name and the arguments that differ. The number of heads does not affect
# the shapes of a transformer's tensors. Source: vits.py of facebookresearch/moco-v3; solo-learn's vit_tiny.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco-v3/vit_tiny": ("vit_tiny_patch16_224", {"num_heads": 12}),
    "moco-v3/vit_small": ("vit_small_patch16_224", {"num_heads": 12}),
    "moco-v3/vit_conv_tiny": ("vit_tiny_patch16_224", {"num_heads": 12, "depth": 11}),
    "moco-v3/vit_conv_small": ("vit_small_patch16_224", {"num_heads": 12, "depth": 11}),
    "moco-v3/vit_conv_base": ("vit_base_patch16_224", {"num_heads": 12, "depth": 11}),
}


def timm_model(backbone: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name of a backbone, and the arguments that differ from that network."""
    return VARIANTS.get(backbone, (backbone, {}))


def has_conv_stem(backbone: str) -> bool:
    """Return whether a backbone has a convolutional stem instead of timm's patch projection, see `conv_stem`."""
    return backbone.startswith("moco-v3/vit_conv_")


def kind_of(backbone: str) -> str | None:
    """Return the type of network according to a backbone's name, or None if there are no tables for it."""
    return next((kind for kind, pattern in _KINDS.items() if re.match(pattern, backbone)), None)


def naming_of(backbone: str) -> str:
    """Return the library whose tensor names medmoco uses for a backbone."""
    return {"monai": "monai", "nnunet": "nnU-Net"}.get(backbone.partition("/")[0], "timm")


def rename(state: Mapping[str, Tensor], backbone: str, source: str, target: str) -> dict[str, Tensor]:
    """Return a state dict with the names and tensor layouts of another library.

    Args:
        state: Tensors by their names in `source`, with or without the classifier.
        backbone: Name as in `model.backbone`.
        source: "timm" or a naming in `TABLES`.
        target: Like `source`.

    Raises:
        CheckpointError: there is no such naming for the network, or a tensor has no name in it.
    """
    kind = kind_of(backbone) or ""
    known = {"timm", *TABLES.get(kind, ())}
    for naming in (source, target):
        if naming not in known:
            raise CheckpointError(f"{backbone} has no names of {naming}; available are: {', '.join(sorted(known))}")
    names = {key: into_hub(key, kind, source) for key in state}
    for key, name in names.items():
        if name is None:
            raise CheckpointError(f"{key} of {backbone} has no name in {source}: the network differs there")
    hub = arranged(state, {key: name for key, name in names.items() if name}, source)
    parts = split_parts({hub.names[key]: value for key, value in hub.tensors.items()}, target)
    renamed = {}
    for hub_name, value in parts.items():
        theirs = from_hub(hub_name, kind, target)
        if theirs is None:
            raise CheckpointError(f"{hub_name} of {backbone} has no name in {target}: the network differs there")
        renamed[theirs] = from_hub_layout(value, target, theirs)
    return renamed


def into_hub(key: str, kind: str, naming: str) -> str | None:
    """Return timm's name of a tensor, or None if it is not in the table."""
    return key if naming == "timm" else _translated(key, _compiled(kind, naming, 1))


def from_hub(name: str, kind: str, naming: str) -> str | None:
    """Return the name of a timm tensor in another naming, or None if it is not in the table."""
    return name if naming == "timm" else _translated(name, _compiled(kind, naming, 0))


def in_hub(name: str, kind: str) -> bool:
    """Return whether a name occurs in timm's standard networks of a type."""
    return any(_translated(name, _compiled(kind, naming, 0)) for naming in TABLES[kind])


@cache
def _compiled(kind: str, naming: str, side: int) -> list[tuple[re.Pattern[str], str]]:
    """Return the rows of a table as patterns for one side (0 is timm's) and names of the other."""
    return [(re.compile(_pattern(row[side])), row[1 - side]) for row in TABLES[kind][naming]]


def _pattern(name: str) -> str:
    leaf = r"([^./]+)" if name.endswith(".") else ""
    return re.escape(name).replace(r"\*", r"(\d+)") + leaf


def _translated(key: str, rows: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in rows:
        match = pattern.fullmatch(key)
        if match:
            parts = (other if not other.endswith(".") else f"{other}*").split("*")
            return "".join(text + group for text, group in zip(parts, [*match.groups(), ""], strict=True))
    return None
