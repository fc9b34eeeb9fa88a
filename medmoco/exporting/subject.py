"""The network to export: an encoder, alone, with a classifier's head or under a decoder, and its preprocessing."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from medmoco.config import Tree
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.errors import CheckpointError
from medmoco.evaluation.features.encoder import Encoder
from medmoco.evaluation.features.encoder_files import Provenance
from medmoco.evaluation.supervised.classifier import Classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.models.backbones import Backbone
from medmoco.models.interop.naming import has_conv_stem, timm_model
from medmoco.models.interop.state_dicts import plain_tensors
from medmoco.models.networks.conv_stem import conv_stem_widths
from medmoco.models.networks.volumes import NETWORKS, TO_IMPORT, VolumeNetwork, layers_of
from medmoco.segmentation.networks import SegmentationNetwork, UNetDecoder
from medmoco.segmentation.segmenter import Segmenter, state_of

Module = TypeVar("Module", bound=nn.Module)

INPUT = "image"
NOT_STATED = "not stated"
NETWORK_PRECISIONS = ("float32", "float16", "bfloat16")
"""Precisions that are tried for networks whose weights can be converted."""

# From the outputs of networks for volumes that end in feature maps, of the last stage or of each.
_FEATURES = {"ResidualEncoder": "outputs.mean((2, 3, 4))", "SwinTransformer": "outputs[-1].mean((2, 3, 4))"}


@dataclass(frozen=True)
class Subject:
    """One network, in float32 and eval mode on the CPU, without gradients.

    Attributes:
        encoder: Network without a head, its preprocessing and provenance.
        head: (L, F), returns log-odds; None for an encoder alone.
        classifier: Content of classifier.json; None for an encoder alone.
        segmentation: The encoder under its decoder; None if there is none.
        segmenter: Content of segmenter.json; None likewise.
        licence: Licence of the weights.
        scored_stages: `evaluate.stages` of an encoder's scores; the exported network returns features of the last only.
    """

    encoder: Encoder
    head: nn.Linear | None = None
    classifier: Tree | None = None
    segmentation: SegmentationNetwork | None = None
    segmenter: Tree | None = None
    licence: str = NOT_STATED
    scored_stages: int = 1

    @property
    def backbone(self) -> Backbone:
        """The encoder's network, of F features."""
        return self.encoder.module

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        return self.encoder.preprocessing

    @property
    def stem(self) -> str:
        """Name of its files, without the suffix."""
        return "classifier" if self.classifier else "segmenter" if self.segmenter else "encoder"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        if self.segmenter:
            return ("probabilities",)
        if self.head is None:
            return ("features",)
        return ("logits", "probabilities") if self.top_patches is None else ("logits", "probabilities", "patch_scores")

    @property
    def top_patches(self) -> int | None:
        """Number of patches that determine an image's score; None if the head takes pooled features."""
        return self.classifier.get("top_patches") if self.classifier else None

    @property
    def build(self) -> dict[str, Any]:
        """How to build the plain network of timm, MONAI or nnU-Net that loads `state` with strict=True.

        For a classifier of patches it is the encoder alone, because the plain network has no such head. For a segmenter
        it is the encoder, with what network.py needs besides.
        """
        return _build(self) | _decoder(self)

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict of the plain network, or of that of network.py."""
        if self.segmentation is not None:
            return state_of(self.segmentation)
        state = dict(self.backbone.net.state_dict())
        if self.head is not None:
            state |= {f"{classifier_name(self)}.{name}": value for name, value in self.head.state_dict().items()}
        return state

    @property
    def example(self) -> Tensor:
        """An input of the network, for tracing: two black images or volumes."""
        prepared = self.preprocessing
        return torch.zeros(2, self.backbone.channels, *[prepared.size] * prepared.dimensions)

    @property
    def precisions(self) -> list[str]:
        """Precisions to try; for volumes only the first, as processors convolve them in others slowly or not at all."""
        return list(NETWORK_PRECISIONS[:1] if self.backbone.dimensions == 3 else NETWORK_PRECISIONS)

    @property
    def graph(self) -> nn.Module:
        """The computation from images to all outputs, for formats that contain it."""
        return GraphNetwork(self) if self.segmentation is None else SegmentationGraph(self.segmentation)


def subject_of(network: Encoder | Classifier | Segmenter, licence: str = NOT_STATED) -> Subject:
    """Return a copy of a network, as formats take it."""
    if isinstance(network, Segmenter):
        whole, known = _frozen(network.module), network.facts.model_dump(mode="json")
        encoder = Encoder(whole.backbone, network.preprocessing, Provenance(known["encoder"]["kind"]))
        return Subject(encoder, segmentation=whole, segmenter=known, licence=licence)
    if isinstance(network, Classifier):
        encoder, facts = network.encoder, network.facts.model_dump(mode="json")
        head = _frozen(network.module.head)
        return Subject(replace(encoder, module=_frozen(encoder.module)), head, facts, licence=licence)
    module = _frozen(network.module)
    encoder = replace(network, module=module.of_last_stage())
    return Subject(encoder, licence=licence, scored_stages=module.stages)


def _frozen(module: Module) -> Module:
    return copy.deepcopy(module).cpu().float().eval().requires_grad_(requires_grad=False)


class GraphNetwork(nn.Module):
    """The computation from images to all outputs, for formats that contain it.

    An encoder returns the features of each image itself. A classifier includes the mean over the mirror image, the
    log-odds of exclusive labels and the calibration, and returns the scores of patches, if it has any.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.network: nn.Module = subject.backbone
        self.slopes: Tensor | None = None
        if subject.head is not None and subject.classifier is not None:
            facts = subject.classifier
            self.network = ClassifierNetwork(
                subject.backbone, subject.head, mirror=subject.preprocessing.mirror, exclusive=facts["exclusive"],
                top_patches=subject.top_patches,
            )  # fmt: skip
            fitted = [facts["calibration"][label] for label in facts["labels"]]
            self.slopes = torch.tensor([line["slope"] for line in fitted])
            self.intercepts = torch.tensor([line["intercept"] for line in fitted])
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return features, or logits, probabilities and, if there are any, the scores of patches."""
        if isinstance(self.network, ClassifierNetwork) and self.network.top_patches is not None:
            patches = self.network.score_patches(images)  # (B, L, h, w)
            logits = self.network.pool(patches)
            return logits, self._calibrate(logits), patches
        outputs: Tensor = self.network(images)
        return outputs if self.slopes is None else (outputs, self._calibrate(outputs))

    def _calibrate(self, logits: Tensor) -> Tensor:
        assert self.slopes is not None
        probabilities: Tensor = (self.slopes * logits + self.intercepts).sigmoid()
        return probabilities


class SegmentationGraph(nn.Module):
    """The computation from windows to the probabilities of background and classes, for formats that contain it."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, C, S, ...) -> (B, 1 + classes, S, ...)."""
        scores: Tensor = self.network(images)
        return scores.softmax(1)


def refuse_other_heads(subject: Subject) -> str | None:
    """Return why a format with only the weights of a plain network cannot hold the subject; None if it can."""
    if subject.segmenter:
        return "it has no place for the decoder of a segmentation network; use onnx, program or monai-bundle"
    if subject.top_patches is not None:
        return "the head scores patches, but the plain network pools features first; use onnx or program"
    if subject.backbone.stages > 1:
        return (
            f"the head takes features of {subject.backbone.stages} stages (evaluate.stages), but the plain network"
            " returns only its last; use onnx or program"
        )
    return None


def classifier_name(subject: Subject) -> str:
    """Return the name of the plain network's classifier layer.

    Raises:
        CheckpointError: the network has several.
    """
    net: Any = subject.backbone.net
    if subject.backbone.name.startswith("monai/"):
        names: list[str] = [name for name, layer in net.named_modules() if isinstance(layer, nn.Identity)]
        return names[-1]
    name = net.pretrained_cfg.get("classifier")
    if not isinstance(name, str):
        raise CheckpointError(f"{subject.backbone.name} has no single classifier in timm; export the encoder alone")
    return name


def _build(subject: Subject) -> dict[str, Any]:
    backbone = subject.backbone
    if backbone.dimensions == 3:
        return _build_of_volumes(NETWORKS[backbone.name], backbone.channels)
    labels = subject.head.out_features if subject.head is not None and subject.top_patches is None else 0
    if not backbone.name.startswith("monai/"):
        # Transformers with a fixed grid of patches need the size of their input.
        fixed = {"img_size": backbone.fixed_size} if backbone.fixed_size else {}
        name, other = timm_model(backbone.name)
        arguments = {"in_chans": backbone.channels, "num_classes": labels, **other, **fixed}
        # timm has the parts of a convolutional stem, but no name for it.
        stem = {"conv_stem": conv_stem_widths(backbone.feature_dim)} if has_conv_stem(backbone.name) else {}
        return {"library": "timm", "name": name, "function": "timm.create_model", "arguments": arguments, **stem}
    kind = type(backbone.net)
    classes = "out_channels" if "out_channels" in inspect.signature(kind).parameters else "num_classes"
    return {
        "library": "monai",
        "name": kind.__name__,
        "function": f"monai.networks.nets.{kind.__name__}",
        "arguments": {"spatial_dims": 2, "in_channels": backbone.channels, classes: labels or 1},
        "replaced_by_identity": None if labels else classifier_name(subject),
    }


def _build_of_volumes(network: VolumeNetwork, channels: int) -> dict[str, Any]:
    name = network.function.rpartition(".")[2]
    return {
        "library": network.library,
        "name": name,
        "function": network.function,
        "arguments": {network.channels: channels, **network.arguments},
        "replaced_by_identity": network.classifier,
        "classes": [key for key in TO_IMPORT if network.arguments.get(key)],
        "features": _FEATURES.get(name, "outputs"),
    }


def _decoder(subject: Subject) -> dict[str, Any]:
    """Return what network.py needs to build a segmentation network, besides its encoder; nothing for other networks."""
    backbone, facts = subject.backbone, subject.segmenter
    if subject.segmentation is None or facts is None:
        return {}
    own = {
        "dimensions": backbone.dimensions,
        "scores": 1 + len(facts["classes"]),
        "layers": layers_of(backbone.name) if backbone.dimensions == 3 else [],
    }
    decoder = subject.segmentation.decoder
    if not isinstance(decoder, UNetDecoder):
        return own
    return own | {"levels": [[level.stride, level.width] for level in decoder.levels], "channels": decoder.finest}


def refusal_by_name(subject: Subject) -> str | None:
    """Return why the network cannot be built from a name and plain arguments; None if it can."""
    return f"timm has no name for {subject.backbone.name} with its stem" if "conv_stem" in subject.build else None


def refuse_all_but_timm(subject: Subject) -> str | None:
    """Return why a format that timm reads by a network's name cannot hold the subject; None if it can."""
    if subject.backbone.dimensions == 3:
        return "timm has no networks for volumes"
    if subject.build["library"] != "timm":
        return f"{subject.backbone.name} is not a timm network"
    return refusal_by_name(subject) or refuse_other_heads(subject)


def written(arguments: Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """Write keyword arguments as in a call, for the card; those in `classes` are names of classes."""
    return ", ".join(f"{key}={value if key in classes else repr(value)}" for key, value in arguments.items())


def save_state(state: Mapping[str, Tensor], file: Path) -> Path:
    """Write tensors as safetensors."""
    content = save(plain_tensors(state), metadata={"format": "pt"})
    file.write_bytes(content)  # save_file would make it readable to its owner only
    return file
