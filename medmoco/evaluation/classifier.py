"""Encoder and linear layer as one, and the folder that it is kept in with all that is needed to use it.

A classifier folder holds classifier.safetensors, tensors alone, and classifier.json, what they mean: the labels, how
images are prepared, how scores become probabilities. It names no path, no patient and no machine. `evaluate` leaves one
for its linear probe, `finetune` for what it trained, and whatever is used later reads one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from medmoco import __version__
from medmoco.config import (
    Channels,
    Float,
    Fraction,
    Int,
    LabelPolicy,
    ModelSettings,
    Positive,
    RunSettings,
    Settings,
    Tree,
    channel_count,
)
from medmoco.data.files import sync_folder
from medmoco.data.manifest import Split
from medmoco.errors import CheckpointError, SettingsError, first_line
from medmoco.evaluation.calibration import Calibration
from medmoco.evaluation.features import extract
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.state_dicts import plain_tensors

Floats = NDArray[np.float64]

WEIGHTS, FACTS = "classifier.safetensors", "classifier.json"

_Finite = Annotated[Float, Field(allow_inf_nan=False)]


class Classifier(nn.Module):
    """A backbone and a linear layer.

    Attributes:
        backbone: The encoder, of F features.
        head: One row for each of L labels.
        mirror: Outside of training, features are the mean of those of the image and of its mirror image.
        exclusive: The labels are classes of which an image has exactly one.
    """

    def __init__(self, backbone: Backbone, head: nn.Linear, *, mirror: bool = False, exclusive: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mirror = mirror
        self.exclusive = exclusive

    def forward(self, views: Tensor) -> Tensor:
        """Return scores: log-odds of each label, (B, C, S, S) -> (B, L) float32."""
        features = self.backbone(views)
        if self.mirror and not self.training:
            features = (features + self.backbone(views.flip(-1))) / 2
        with torch.autocast(views.device.type, enabled=False):  # log-odds of 8 bits would tie
            logits: Tensor = self.head(features.float())
        return one_versus_rest(logits) if self.exclusive else logits


def one_versus_rest(logits: Tensor) -> Tensor:
    """Return the log-odds log(p / (1 - p)) of softmax probabilities p.

    Classes are then scored, calibrated and thresholded as independent labels are; their order stays that of p.

    Args:
        logits: (B, L), L at least 2.
    """
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits.log_softmax(1)
    # Of the largest p, 1 - p would lose its digits; the rest are at most one half.
    rest = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))
    return rest.scatter(1, top, logits.gather(1, top) - others)


def fold_probe(mean: Floats, scale: Floats, coefficients: Floats, intercepts: Floats) -> nn.Linear:
    """Return the linear layer that gives on raw features what a linear probe gives on standardised ones.

    Args:
        mean: (F,) subtracted from the features.
        scale: (F,) that divides them then; scikit-learn's `StandardScaler.scale_`.
        coefficients: (L, F) of the probe.
        intercepts: (L,).
    """
    weight = coefficients / scale
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(intercepts - weight @ mean))
    return head


# What classifier.json holds


class _Canvas(Settings):
    canvas_size: Int
    bit_depth: Literal[8, 16]
    window: Literal["voi", "full"] | tuple[_Finite, Positive]
    channels: Channels = "gray"  # these three are missing in folders that were written when there was gray alone
    scale: Literal["linear", "log"] = "linear"
    band_ranges: tuple[tuple[_Finite, _Finite], ...] | None = None


class _Normalisation(Settings):
    mean: Fraction | tuple[Fraction, ...]
    std: Positive | tuple[Positive, ...]


class _Calibration(Settings):
    kind: str
    slope: _Finite
    intercept: _Finite


class _OperatingPoint(Settings):
    specificity: Fraction
    threshold: _Finite


class _Facts(Settings):
    format: Literal[1]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    exclusive: bool = False
    label_policies: dict[str, LabelPolicy]
    backbone: str
    size: Annotated[Int, Field(ge=16)]
    mirror: bool
    data: _Canvas
    views: _Normalisation
    calibration: dict[str, _Calibration]
    operating_points: dict[str, tuple[_OperatingPoint, ...]]
    trained: Literal["linear probe", "fine-tuned"]
    val_auroc: dict[str, _Finite | None]
    encoder: dict[str, str | Int | None]
    seed: Int
    medmoco: str
    sha256: str

    @model_validator(mode="after")
    def _every_label_is_described(self) -> _Facts:
        for name in ("calibration", "operating_points", "val_auroc"):
            if set(getattr(self, name)) != set(self.labels):
                raise ValueError(f"{name} does not name the labels")
        return self


def describe_classifier(
    settings: RunSettings,
    labels: tuple[str, ...],
    *,
    trained: str,
    encoder: Mapping[str, Any],
    val_auroc: Mapping[str, float | None],
    calibration: Mapping[str, Mapping[str, Any]],
    operating_points: Mapping[str, list[dict[str, float]]],
    exclusive: bool = False,
) -> Tree:
    """Return the facts that `save_classifier` takes, those of the images' preparation taken from the settings.

    Args:
        settings: That the classifier was trained with.
        labels: L names, in the order of the head.
        trained: "linear probe" or "fine-tuned".
        encoder: What `load_backbone` said the encoder is.
        val_auroc: By label; None where undefined.
        calibration: By label: kind, slope, intercept.
        operating_points: By label: specificity and threshold on the raw scores.
        exclusive: See `Classifier`.
    """
    return {
        "labels": list(labels),
        "exclusive": exclusive,
        "label_policies": {name: policy.model_dump() for name, policy in settings.data.labels.items()},
        "backbone": settings.model.backbone,
        "size": settings.evaluate.size or settings.views.size,
        "mirror": settings.evaluate.mirror,
        "data": {key: getattr(settings.data, key) for key in _Canvas.model_fields},
        "views": {key: getattr(settings.views, key) for key in _Normalisation.model_fields},
        "calibration": dict(calibration),
        "operating_points": dict(operating_points),
        "trained": trained,
        "val_auroc": dict(val_auroc),
        "encoder": dict(encoder),
        "seed": settings.seed,
    }


# The folder


def save_classifier(folder: Path, classifier: Classifier, facts: Tree) -> None:
    """Write a classifier folder, in place of one that is there.

    Args:
        folder: Is made if need be.
        classifier: Of L labels.
        facts: See `describe_classifier`.

    Raises:
        CheckpointError: the weights are not finite, or the disk refuses.
        ValueError: the facts are not those of the classifier; a bug.
    """
    if len(facts["labels"]) != classifier.head.out_features or facts["backbone"] != classifier.backbone.name:
        raise ValueError("the facts are another classifier's")
    state = {f"backbone.{name}": value for name, value in classifier.backbone.net.state_dict().items()}
    state |= {f"head.{name}": value for name, value in classifier.head.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values()):
        raise CheckpointError("the classifier's weights are not finite: its training diverged; nothing was written")
    content = save(plain_tensors(state), metadata={"format": "pt"})
    own = {"format": 1, "medmoco": __version__, "sha256": hashlib.sha256(content).hexdigest()}
    tree = _Facts.model_validate({**facts, **own}).model_dump(mode="json")
    text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, content)
        _write(folder / FACTS, text.encode())
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"the classifier folder {folder} cannot be written: {error.strerror}") from None


def remove_classifier(folder: Path) -> None:
    """Take a classifier out of its folder, and the folder where nothing else is in it.

    Raises:
        CheckpointError: the disk refuses.
    """
    try:
        for name in (FACTS, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise CheckpointError(f"the classifier folder {folder} cannot be removed: {error.strerror}") from None


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def load_classifier(folder: Path) -> tuple[Classifier, Tree]:
    """Read a classifier folder.

    Returns:
        The classifier, in eval mode on the CPU, and the content of classifier.json.

    Raises:
        CheckpointError: it is no such folder, or damaged, or of another version.
    """
    tree = _read_facts(folder)
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != tree["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged, or not the file that {FACTS} was written with: its SHA-256 differs.\n"
            "Copy the folder again, or make it anew."
        )
    try:
        model, channels = ModelSettings(backbone=tree["backbone"]), channel_count(tree["data"]["channels"])
        backbone = create_backbone(model, seed=0, size=tree["size"], channels=channels)
        classifier = Classifier(
            backbone,
            nn.Linear(backbone.feature_dim, len(tree["labels"])),
            mirror=tree["mirror"],
            exclusive=tree["exclusive"],
        )
        state = {_own_name(name): value for name, value in load(content).items()}
        classifier.load_state_dict(state)
    except SettingsError as error:
        raise CheckpointError(f"{folder / FACTS}: {error}") from None
    except (SafetensorError, RuntimeError):
        raise CheckpointError(
            f"{folder / WEIGHTS} does not hold a {tree['backbone']} with {len(tree['labels'])} labels.\n"
            "The versions of timm and MONAI that it was made with may differ from these."
        ) from None
    return classifier.eval(), tree


def _own_name(name: str) -> str:
    return f"backbone.net.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else name


def _read_facts(folder: Path) -> Tree:
    file = folder / FACTS
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return _Facts.model_validate(tree).model_dump(mode="json")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no classifier folder: it has no {FACTS};\n`medmoco finetune` and `medmoco evaluate` leave one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        finding = error.errors()[0]
        reason = f"{'.'.join(map(str, finding['loc'])) or FACTS}: {finding['msg'].removeprefix('Value error, ')}"
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
    raise CheckpointError(f"{file} is damaged or of another version of medmoco ({reason})")


# Using it


def fixed(facts: Tree) -> Tree:
    """Return facts as settings have them, with tuples in the place of JSON's lists."""
    return {
        key: tuple(tuple(each) if isinstance(each, list) else each for each in value)
        if isinstance(value, list)
        else value
        for key, value in facts.items()
    }


def prepared(settings: RunSettings, facts: Tree) -> tuple[RunSettings, list[str]]:
    """Return settings that prepare images as the classifier's were, and what was changed for that, a line each.

    Args:
        settings: Name the data and the machine.
        facts: Of the classifier.
    """
    wanted: dict[str, Tree] = {
        "model": {"backbone": facts["backbone"]},
        "data": fixed(facts["data"]),
        "views": fixed(facts["views"]),
        "evaluate": {"mirror": facts["mirror"], "size": facts["size"]},
    }
    own = {"evaluate": {"size": settings.evaluate.size or settings.views.size}}
    changes = []
    for group, values in wanted.items():
        for key, value in values.items():
            given = own.get(group, {}).get(key, getattr(getattr(settings, group), key))
            if given != value:
                changes.append(f"{group}.{key} is {value}, as the classifier was trained, not {given}")
    groups = {group: getattr(settings, group).model_copy(update=values) for group, values in wanted.items()}
    return settings.model_copy(update=groups), changes


def own_calibration(facts: Tree, label: str) -> Calibration:
    """Return what turns the scores of one of the classifier's labels into log-odds that can be believed."""
    fitted = facts["calibration"][label]
    return Calibration(fitted["slope"], fitted["intercept"])


def score_split(
    classifier: Classifier, facts: Tree, split: Split, settings: RunSettings, device: torch.device
) -> Floats:
    """Return the classifier's scores of every row, (N, L) log-odds.

    Images are prepared as the facts say, whatever the settings say.

    Args:
        classifier: As loaded; is moved to the device.
        facts: Of the classifier.
        split: N rows.
        settings: Name the data and the machine.
        device: To compute on.

    Raises:
        CheckpointError: scores are not finite.
        DataError: an image cannot be used.
    """
    settings, _ = prepared(settings, facts)
    classifier.to(device)
    scores = extract({"classifier": classifier}, split, settings, device).features["classifier"]
    return scores.astype(np.float64)
