"""The folder of a classifier, with everything needed to use it.

It contains classifier.safetensors, with the weights, and classifier.json, with the labels, the preprocessing, the
calibration and the thresholds; no paths, patients or machines. `evaluate` writes one for its linear probe, and
`finetune` for the network it trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from medmoco import __version__
from medmoco.config import Float, Fraction, Int, LabelPolicy, ModelSettings, RunSettings, Settings, Tree
from medmoco.data.loading.preprocessing import CanvasPart, NormalisationPart, Preprocessing
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.evaluation.supervised.model_folder import ModelFolder
from medmoco.models.backbones import create_backbone
from medmoco.models.patches import check_patches

WEIGHTS, FACTS = "classifier.safetensors", "classifier.json"
_FOLDER = ModelFolder("classifier", WEIGHTS, FACTS, "`medmoco finetune` or `medmoco evaluate`")

_Finite = Annotated[Float, Field(allow_inf_nan=False)]


# What classifier.json holds


class _Calibration(Settings):
    kind: str
    slope: _Finite
    intercept: _Finite


class _OperatingPoint(Settings):
    specificity: Fraction
    threshold: _Finite


class Facts(Settings):
    """The content of classifier.json."""

    format: Literal[1]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    exclusive: bool = False
    head: Literal["linear", "patches"] = "linear"
    top_patches: Annotated[Int, Field(ge=1)] | None = None
    label_policies: dict[str, LabelPolicy]
    backbone: str
    size: Annotated[Int, Field(ge=16)]
    mirror: bool
    stages: Annotated[Int, Field(ge=1)] = 1  # missing in older classifiers, as is the next
    volumes: Literal["sliding", "resized"] = "sliding"
    data: CanvasPart
    views: NormalisationPart
    calibration: dict[str, _Calibration]
    operating_points: dict[str, tuple[_OperatingPoint, ...]]
    trained: Literal["linear probe", "fine-tuned"]
    val_auroc: dict[str, _Finite | None]
    encoder: dict[str, str | Int | None]
    seed: Int
    medmoco: str
    sha256: str

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the classifier's images."""
        shown = {"size": self.size, "mirror": self.mirror, "volumes": self.volumes}
        return Preprocessing(**dict(self.data), **dict(self.views), **shown)

    @model_validator(mode="after")
    def _every_label_is_described(self) -> Facts:
        for name in ("calibration", "operating_points", "val_auroc"):
            if set(getattr(self, name)) != set(self.labels):
                raise ValueError(f"{name} does not name the labels")
        return self

    @model_validator(mode="after")
    def _head_is_described(self) -> Facts:
        if (self.head == "patches") != (self.top_patches is not None):
            raise ValueError("head and top_patches contradict each other")
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
    top_patches: int | None = None,
) -> Tree:
    """Return the facts for `save_classifier`, see `Facts`; the preprocessing is that of the settings.

    `encoder` is the `Provenance.record` of the encoder before training, and `val_auroc` is None where undefined.
    """
    return {
        "labels": list(labels),
        "exclusive": exclusive,
        "head": "linear" if top_patches is None else "patches",
        "top_patches": top_patches,
        "label_policies": {name: policy.policy for name, policy in settings.data.labels.items()},
        "backbone": settings.model.backbone,
        "size": settings.evaluate.size or settings.views.size,
        "mirror": settings.evaluate.mirror,
        "stages": settings.evaluate.stages,
        "volumes": settings.evaluate.volumes,
        "data": {key: getattr(settings.data, key) for key in CanvasPart.model_fields},
        "views": {key: getattr(settings.views, key) for key in NormalisationPart.model_fields},
        "calibration": dict(calibration),
        "operating_points": dict(operating_points),
        "trained": trained,
        "val_auroc": dict(val_auroc),
        "encoder": dict(encoder),
        "seed": settings.seed,
    }


# The folder


def is_classifier(folder: Path) -> bool:
    """Return whether a folder is a classifier folder."""
    return (folder / FACTS).is_file()


def save_classifier(folder: Path, classifier: ClassifierNetwork, facts: Tree) -> None:
    """Write a classifier folder, replacing an existing one; `facts` are those of `describe_classifier`.

    Raises:
        CheckpointError: the weights are not finite, or the folder cannot be written.
        ValueError: the facts do not match the classifier; a bug.
    """
    backbone = classifier.backbone
    own = (classifier.head.out_features, backbone.name, backbone.stages, classifier.top_patches)
    if own != (len(facts["labels"]), facts["backbone"], facts["stages"], facts["top_patches"]):
        raise ValueError("the facts are those of another classifier")
    state = {f"backbone.{name}": value for name, value in backbone.net.state_dict().items()}
    state |= {f"head.{name}": value for name, value in classifier.head.state_dict().items()}
    _FOLDER.write(folder, state, Facts, {**facts, "format": 1, "medmoco": __version__})


def remove_classifier(folder: Path) -> None:
    """Delete a classifier, and its folder if nothing else is in it.

    Raises:
        CheckpointError: it cannot be deleted.
    """
    try:
        for name in (FACTS, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise CheckpointError(f"the classifier folder {folder} cannot be removed: {error.strerror}") from None


def read_classifier(folder: Path) -> tuple[ClassifierNetwork, Facts]:
    """Read a classifier folder; the network is in eval mode on the CPU.

    Raises:
        CheckpointError: it is not a classifier folder, is damaged, or was written by another version.
    """
    facts = _FOLDER.read_facts(folder, Facts)
    content = _FOLDER.read_weights(folder, facts.sha256)
    try:
        prepared = facts.preprocessing
        backbone = create_backbone(
            ModelSettings(backbone=facts.backbone), seed=0, size=facts.size, channels=prepared.channel_count,
            stages=facts.stages, dimensions=prepared.dimensions,
        )  # fmt: skip
        network = ClassifierNetwork(
            backbone,
            nn.Linear(backbone.feature_dim, len(facts.labels)),
            mirror=facts.mirror,
            exclusive=facts.exclusive,
            top_patches=facts.top_patches,
        )
        if network.top_patches is not None:
            check_patches(backbone, facts.size, network.top_patches)
        state = {re.sub(r"^backbone\.", "backbone.net.", name): value for name, value in load(content).items()}
        network.load_state_dict(state)
    except SettingsError as error:
        raise CheckpointError(f"{folder / FACTS}: {error}") from None
    except (SafetensorError, RuntimeError):
        raise _FOLDER.mismatch(folder, f"{facts.backbone} with {len(facts.labels)} labels") from None
    return network.eval(), facts
