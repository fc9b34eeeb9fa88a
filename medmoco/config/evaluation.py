"""Settings of scoring, fine-tuning, detection and the hyperparameter search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from medmoco.config.base import Count, Float, Int, Positive, Settings, Tree
from medmoco.config.paths import PathSetting

PROTOCOLS: dict[str, Tree] = {
    "end_to_end": {},
    "linear_sgd": {
        "augmentation": "crop_flip", "epochs": 100, "global_batch_size": 256, "optimizer": "sgd", "lr": 30.0,
        "head_lr": 30.0, "weight_decay": 0.0, "warmup_epochs": 0.0, "schedule": "step", "patience": 0,
        "least_steps": 1,
    },
}  # fmt: skip
"""Source: linear_sgd, facebookresearch/moco `main_lincls.py`."""


class EvaluateSettings(Settings):
    """Scoring of frozen features."""

    size: Annotated[Int, Field(ge=16, le=2048)] | None = None
    """Side in pixels of the images the encoder sees; null is views.size."""

    batch_size: Count = 64
    """Images per forward pass."""

    mirror: bool = False
    """Features are the mean of those of the image and of its mirror image; raw pixels stay as they are.
    Source: measured, +0.003 to +0.010 AUROC where views are mirrored in training."""

    where: str | None = None
    """Restrict rows, such as "Pneumonia == 1" or "ViewPosition in (PA, AP) and Age >= 18"."""

    label_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of training patients whose labels are used."""

    label_draws: Count = 1
    """Independent draws of that share; scores are averaged over them."""

    strengths: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Inverse regularisation strengths C of the probe to choose from on validation."""

    neighbours: Count = 20
    """Neighbours of the kNN score."""

    fractions: tuple[Annotated[Float, Field(gt=0, le=1)], ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    """Shares of the training patients of `medmoco curve`. Source: Sowrirajan et al. 2021 have 0.1 to 100 %."""

    specificities: tuple[Annotated[Float, Field(gt=0, lt=1)], ...] = (0.9, 0.95)
    """Operating points: thresholds that reach this specificity on validation."""

    calibration: Literal["platt", "temperature"] = "platt"
    """How scores become probabilities; fitted on validation. Source: Platt 1999; Guo et al. 2017 (arXiv:1706.04599)."""

    bins: Annotated[Int, Field(ge=2)] = 10
    """Bins of the calibration curve and of its error."""

    subgroups: tuple[str, ...] = ()
    """Columns to score apart, such as [Sex, ViewPosition, Age]."""

    age_bands: tuple[Float, ...] = (0, 18, 40, 60, 80)
    """Years that the bands of Age begin at; the last has no end."""

    least_patients: Count = 20
    """Subgroups of fewer labelled patients are not scored: their numbers mean little and may identify."""

    allow_leakage: bool = False
    """Score a test split that shares patients or images with what was learned from; every score then says so."""

    bootstrap: Annotated[Int, Field(ge=100)] = 1000
    """Draws of patients behind every 95 % interval. Source: 1,000 or more is the convention."""


class FinetuneSettings(Settings):
    """Supervised training. Presets by `protocol`; any key given here replaces the preset's.

    Device, precision, threads, checkpoints and the like are those of `train`.
    """

    protocol: Literal["end_to_end", "linear_sgd"] = "end_to_end"
    """Preset that the other keys of this group start from. linear_sgd trains a linear layer on the frozen encoder as
    the papers do."""

    classes: str | None = None
    """Text column that names one class for each image; it takes the place of `data.labels`."""

    head: Literal["linear", "patches"] = "linear"
    """Classifier: one linear layer on pooled features; or on those of each patch, of whose scores the highest count.
    Source: Durand et al. 2016, "WELDON" (CVPR), for the latter."""

    top_patches: Count = 8
    """How many of an image's patches count in head `patches`: its score is their mean.
    Source: a judgement, 4 % of the 196 patches of 16 pixels in 224 x 224."""

    label_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of training patients whose labels are used."""

    label_draw: Annotated[Int, Field(ge=0)] = 0
    """Number of the draw of that share; `evaluate` has the same draws."""

    augmentation: Literal["views", "crop_flip"] = "views"
    """views: as the settings of `views` say; crop_flip: the crops and mirroring of ImageNet training, nothing else.
    Source: Szegedy et al. 2015 (arXiv:1409.4842) for the crops."""

    epochs: Count = 30
    """Passes over the labelled training images, if early stopping does not end it before."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 64
    """Images per step. Source: a judgement for some thousand labelled images."""

    least_steps: Count = 20
    """Steps of an epoch at least: an epoch goes several times over few labelled images, each time in other views."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Source: He et al. 2022 (arXiv:2111.06377) fine-tune with AdamW."""

    lr: Positive = 1e-3
    """Peak learning rate of the encoder's last layer, literally. Source: He et al. 2022."""

    head_lr: Positive = 1e-3
    """Peak learning rate of the classifier."""

    layer_decay: Annotated[Float, Field(gt=0, le=1)] = 0.75
    """Share of the next layer's learning rate that each layer has; from scratch all have the same. Source: Bao et al.
    2022 (arXiv:2106.08254)."""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.05
    """Never on norms and biases. Source: He et al. 2022."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 1.0
    """Linear rise from 0 to the peak."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Source: He et al. 2022."""

    milestones: tuple[Positive, ...] = (60.0, 80.0)
    """Epochs at which schedule `step` divides the rate by ten. Source: facebookresearch/moco."""

    patience: Annotated[Int, Field(ge=0)] = 10
    """End after so many epochs without a better validation AUROC; 0 is never. The best epoch is kept in any case."""

    loss: Literal["bce", "focal"] = "bce"
    """Cross-entropy, of each label or of the classes; focal weighs what is still wrong.
    Source: Lin et al. 2017 (arXiv:1708.02002)."""

    focal_gamma: Annotated[Float, Field(ge=0)] = 2.0
    """How much less an image counts the better it is classified. Source: Lin et al. 2017."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: positives and negatives of a label, or all classes, count the same together."""


class DetectionSettings(Settings):
    """Training of a detector on boxes.

    Device, precision, threads, checkpoints and the like are those of `train`; mirroring, brightness, contrast and gamma
    those of `views`.
    """

    boxes: PathSetting | None = None
    """Table of the boxes, see manifests/README.md; null is boxes.csv beside the manifest."""

    unlisted: Literal["ignore", "negative"] = "ignore"
    """What an image is that no row of the table names: not annotated, and left out; or examined, and without a box.
    Source: of NIH's images 880 have boxes, and nobody looked for boxes in the others."""

    labels: tuple[str, ...] = ()
    """Labels to detect; all of the table if none is named."""

    agreement: Count = 1
    """Readers who must have drawn a box, where the table has a Reader column; one named consensus counts as all."""

    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"
    """Source: Ren et al. 2015 (arXiv:1506.01497); Lin et al. 2017 (arXiv:1708.02002); both with a feature pyramid."""

    size: Annotated[Int, Field(ge=32, le=4096)] = 512
    """Longer side in pixels of the images that the detector sees."""

    channels: Annotated[Int, Field(ge=8)] = 256
    """Of the feature pyramid. Source: Lin et al. 2017 (arXiv:1612.03144)."""

    smallest_anchor: Positive = 32.0
    """Side in pixels of the anchors at the finest level; it doubles from level to level. Source: torchvision."""

    proposals: Annotated[Int, Field(ge=8)] = 512
    """Boxes of an image that the second stage of faster_rcnn trains on. Source: torchvision."""

    frozen_stages: Annotated[Int, Field(ge=0, le=5)] = 0
    """Stages of the encoder that stay as they are, from the first: 1 is the stem, 2 what has a stride of 4, and so on.
    Source: He et al. 2020 fine-tune all."""

    norm: Literal["batch", "frozen"] = "batch"
    """Batch norms of the encoder: trained, over the whole batch; or as pretraining left them.
    Source: He et al. 2020, section 4.2, train them, synchronised."""

    extra_norm: Literal["pyramid", "c5", "none"] = "pyramid"
    """Batch norms that the encoder does not have: in the feature pyramid, or after the encoder's last stage.
    Source: He et al. 2020, section 4.2: they calibrate magnitudes, which differ from supervised encoders'."""

    epochs: Count = 24
    """Passes over the annotated training images, if early stopping does not end it before."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 16
    """Images per step. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Source: Li et al. 2022 (arXiv:2203.16527) train detectors with AdamW."""

    lr: Positive = 1e-4
    """Peak learning rate, literally. Source: Li et al. 2022; SGD needs some hundred times as much."""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.05
    """On every parameter for SGD; not on norms and biases for AdamW."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 1.0
    """Linear rise from 0 to `lr`."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Course of the learning rate."""

    milestones: tuple[Positive, ...] = (16.0, 22.0)
    """Epochs at which schedule `step` divides the rate by ten. Source: detectron2's 2x schedule."""

    patience: Annotated[Int, Field(ge=0)] = 0
    """End after so many epochs without a better average precision on val; 0 is never. The best epoch is kept anyway."""


class Range(Settings):
    """Numbers to choose from."""

    low: Float
    """Smallest."""

    high: Float
    """Largest."""

    log: bool = False
    """Equal steps multiply: for what spans powers of ten."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}{', and above 0' if self.log else ''}")
        return self


# Told apart by their form, so that what is wrong with one is not said of the other too.
Possible = Annotated[
    Annotated[tuple[Any, ...], Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda possible: "choices" if isinstance(possible, list | tuple) else "range"),
]


class TuneSettings(Settings):
    """What `medmoco tune` tries."""

    space: dict[str, Possible] = Field(default={})
    """Setting -> a list of choices, or {low, high, log} of numbers; such as {train.lr: {low: 0.003, high: 0.3,
    log: true}, method.queue_size: [1024, 4096]}."""

    trials: Count = 20
    """Pretraining runs in all; the first is of the settings as given. Source: four more are drawn blindly."""

    epochs: Count | None = None
    """Passes of each trial over the training split; null is train.epochs."""

    label: str | None = None
    """Label to judge by; null is the mean over data.labels."""

    @field_validator("space", mode="before")
    @classmethod
    def _lists_or_ranges(cls, space: Any) -> Any:
        for key, possible in space.items() if isinstance(space, dict) else ():
            is_range = isinstance(possible, dict) and {"low", "high"} <= possible.keys() <= {"low", "high", "log"}
            are_choices = isinstance(possible, list | tuple) and len(possible) > 0
            if not (are_choices or isinstance(possible, Range) or is_range):
                raise ValueError(f"give {key} a list of choices, or {{low: ..., high: ..., log: true}}")
        return space
