"""Settings of evaluation, fine-tuning, detection, segmentation and hyperparameter search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from medmoco.config.base import Count, Float, Fraction, Int, Positive, Settings, Tree
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
    """Evaluation of frozen features."""

    size: Annotated[Int, Field(ge=16, le=2048)] | None = None
    """Side, in pixels, of the encoder's input images; null uses views.size."""

    batch_size: Count = 64
    """Images per forward pass."""

    mirror: bool = False
    """Average the features of each image and of its mirror image; raw pixels, a control, are not affected.
    Source: measured, +0.003 to +0.010 AUROC if views are flipped in training."""

    stages: Count = 1
    """Number of last stages that the features come from: the pooled maps of those before the last are joined to the
    features. It costs almost no time. Fine-tuning uses the last stage only. Source: Caron et al. 2021
    (arXiv:2104.14294), 4 for small transformers; measured, docs/results.md."""

    volumes: Literal["sliding", "resized"] = "sliding"
    """Features of a volume: the mean over overlapping windows that cover it (sliding), or those of the whole volume
    resized to a cube (resized)."""

    where: str | None = None
    """Condition that rows must meet, such as "Pneumonia == 1" or "ViewPosition in (PA, AP) and Age >= 18"."""

    classes: str | None = None
    """Text column with the class of each image, of which one probe predicts all; it replaces `data.labels`."""

    targets: tuple[str, ...] = ()
    """Columns of numbers to predict by ridge regression, such as [Age], in addition to the labels or classes."""

    label_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training patients whose labels are used."""

    label_draws: Count = 1
    """Number of independent draws of that fraction; scores are averaged over them."""

    strengths: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Candidate values of the probe's inverse regularisation strength C; the best on the validation split is used. The
    penalty of ridge regression is 1 / C."""

    neighbours: Count = 20
    """Number of neighbours k of the kNN classifier."""

    fractions: tuple[Annotated[Float, Field(gt=0, le=1)], ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    """Fractions of the training patients in `medmoco curve`. Source: Sowrirajan et al. 2021 use 0.1 to 100 %."""

    specificities: tuple[Annotated[Float, Field(gt=0, lt=1)], ...] = (0.9, 0.95)
    """Operating points: specificities on the validation split at which thresholds are set."""

    calibration: Literal["platt", "temperature"] = "platt"
    """Method that calibrates scores to probabilities, fitted on the validation split. Source: Platt 1999; Guo et al.
    2017 (arXiv:1706.04599)."""

    bins: Annotated[Int, Field(ge=2)] = 10
    """Number of bins of the calibration curve and of the calibration error."""

    subgroups: tuple[str, ...] = ()
    """Columns whose subgroups are scored separately, such as [Sex, ViewPosition, Age]."""

    age_bands: tuple[Float, ...] = (0, 18, 40, 60, 80)
    """Lower bounds of the age groups, in years; the last group has no upper bound."""

    least_patients: Count = 20
    """Smallest number of labelled patients of a scored subgroup; scores of fewer are unreliable and may identify
    patients."""

    allow_leakage: bool = False
    """Score a test split that shares patients or images with the training data; the scores are then marked."""

    bootstrap: Annotated[Int, Field(ge=100)] = 1000
    """Number of bootstrap samples of patients for each 95 % interval. Source: 1,000 or more is the convention."""


class FinetuneSettings(Settings):
    """Supervised training. `protocol` selects a preset, and every key set here overrides it.

    Device, precision, threads, checkpoints and similar settings are taken from `train`.
    """

    protocol: Literal["end_to_end", "linear_sgd"] = "end_to_end"
    """Preset for the other keys of this group. linear_sgd trains a linear layer on the frozen encoder, as in the
    papers."""

    classes: str | None = None
    """Text column with the class of each image; it replaces `data.labels`."""

    head: Literal["linear", "patches"] = "linear"
    """Classifier head: a linear layer on the pooled features (linear), or on the features of each patch, with the
    highest patch scores averaged (patches). Source: Durand et al. 2016, "WELDON" (CVPR), for patches."""

    top_patches: Count = 8
    """Number of patch scores that head `patches` averages, highest first.
    Source: our choice, 4 % of the 196 patches of 16 pixels in 224 x 224."""

    label_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training patients whose labels are used."""

    label_draw: Annotated[Int, Field(ge=0)] = 0
    """Number of the draw of that fraction; `evaluate` uses the same draws."""

    augmentation: Literal["views", "crop_flip"] = "views"
    """Augmentation: views, as set in `views`; crop_flip, only the crops and flips of ImageNet training.
    Source: Szegedy et al. 2015 (arXiv:1409.4842) for the crops."""

    epochs: Count = 30
    """Largest number of passes over the labelled training images; early stopping may end training before."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 64
    """Images per step. Source: our choice, for a few thousand labelled images."""

    least_steps: Count = 20
    """Smallest number of steps per epoch; with few labelled images, an epoch uses each of them several times, in new
    views."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimiser. Source: He et al. 2022 (arXiv:2111.06377) fine-tune with AdamW."""

    lr: Positive = 1e-3
    """Peak learning rate of the encoder's last layer; it is not scaled with the batch size. Source: He et al. 2022."""

    head_lr: Positive = 1e-3
    """Peak learning rate of the classifier."""

    layer_decay: Annotated[Float, Field(gt=0, le=1)] = 0.75
    """Factor by which the learning rate decreases from each layer to the one below; not applied when training from
    scratch. Source: Bao et al. 2022 (arXiv:2106.08254)."""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.05
    """Weight decay, not applied to norms and biases. Source: He et al. 2022."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 1.0
    """Epochs in which the learning rates rise linearly from 0 to their peaks."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Schedule of the learning rate. Source: He et al. 2022."""

    milestones: tuple[Positive, ...] = (60.0, 80.0)
    """Epochs at which schedule `step` divides the learning rate by ten. Source: facebookresearch/moco."""

    patience: Annotated[Int, Field(ge=0)] = 10
    """Epochs without a better validation AUROC after which training stops; 0 disables early stopping. The best epoch is
    kept in any case."""

    loss: Literal["bce", "focal"] = "bce"
    """Cross-entropy of each label or over the classes (bce), or the focal loss, which emphasises misclassified images.
    Source: Lin et al. 2017 (arXiv:1708.02002)."""

    focal_gamma: Annotated[Float, Field(ge=0)] = 2.0
    """Focusing parameter: larger values reduce the weight of well-classified images. Source: Lin et al. 2017."""

    class_weights: Literal["none", "balanced"] = "none"
    """Class weights; balanced gives positives and negatives of a label, or all classes, the same total weight."""


class DetectionSettings(Settings):
    """Training of an object detector.

    Device, precision, threads, checkpoints and similar settings are taken from `train`; flips, brightness, contrast and
    gamma from `views`.
    """

    boxes: PathSetting | None = None
    """Table of boxes (manifests/README.md); null uses boxes.csv next to the manifest."""

    unlisted: Literal["ignore", "negative"] = "ignore"
    """How to treat images without a row in the table: as not annotated (ignore), or as annotated without a box
    (negative). Source: 880 of NIH's images have boxes, and the others were not annotated."""

    labels: tuple[str, ...] = ()
    """Labels to detect; by default, all in the table."""

    agreement: Count = 1
    """Number of readers who must have marked a box, if the table has a Reader column; the reader "consensus" counts as
    all."""

    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"
    """Detector, with a feature pyramid. Source: Ren et al. 2015 (arXiv:1506.01497); Lin et al. 2017
    (arXiv:1708.02002)."""

    size: Annotated[Int, Field(ge=32, le=4096)] = 512
    """Longer side, in pixels, of the detector's input images."""

    channels: Annotated[Int, Field(ge=8)] = 256
    """Channels of the feature pyramid. Source: Lin et al. 2017 (arXiv:1612.03144)."""

    smallest_anchor: Positive = 32.0
    """Side, in pixels, of the anchors at the finest level; it doubles from level to level. Source: torchvision."""

    proposals: Annotated[Int, Field(ge=8)] = 512
    """Proposals per image on which the second stage of faster_rcnn is trained. Source: torchvision."""

    frozen_stages: Annotated[Int, Field(ge=0, le=5)] = 0
    """Number of the encoder's first stages that are frozen: 1 is the stem, 2 also the stage of stride 4, and so on.
    Source: He et al. 2020 fine-tune all."""

    norm: Literal["batch", "frozen"] = "batch"
    """Batch norm of the encoder: trained over the whole batch (batch), or frozen at its pretrained statistics (frozen).
    Source: He et al. 2020, section 4.2, train it, synchronised."""

    extra_norm: Literal["pyramid", "c5", "none"] = "pyramid"
    """Where to add batch norm: in the feature pyramid, or after the encoder's last stage (c5).
    Source: He et al. 2020, section 4.2: it calibrates feature magnitudes, which differ from supervised encoders'."""

    epochs: Count = 24
    """Largest number of passes over the annotated training images; early stopping may end training before."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 16
    """Images per step. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimiser. Source: Li et al. 2022 (arXiv:2203.16527) train detectors with AdamW."""

    lr: Positive = 1e-4
    """Peak learning rate; it is not scaled with the batch size. Source: Li et al. 2022; SGD needs about 100 times as
    much."""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.05
    """Weight decay: of all parameters for SGD, not of norms and biases for AdamW."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 1.0
    """Epochs in which the learning rate rises linearly from 0 to `lr`."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Schedule of the learning rate."""

    milestones: tuple[Positive, ...] = (16.0, 22.0)
    """Epochs at which schedule `step` divides the learning rate by ten. Source: detectron2's 2x schedule."""

    patience: Annotated[Int, Field(ge=0)] = 0
    """Epochs without a better validation average precision after which training stops; 0 disables early stopping. The
    best epoch is kept in any case."""


class SegmentationSettings(Settings):
    """Training of a segmentation network.

    Device, precision, threads, checkpoints and similar settings are taken from `train`; rotation, flips and changes of
    intensity from `views`.
    """

    classes: dict[str, Annotated[Int, Field(ge=1, le=65535)]] = Field(default={})
    """Name of each class and its value in the masks, such as {anterior: 1, posterior: 2}; 0 is the background. By
    default, every value in the masks of train is a class, such as "class 1"."""

    ignore: Annotated[Int, Field(ge=1, le=65535)] | None = None
    """Value in the masks of what is neither learned nor scored, such as 255."""

    runs: Literal["absolute", "relative"] | None = None
    """How masks given as run lengths count: every start from the first pixel (absolute), or from the end of the run
    before (relative); null if masks are files. Source: SIIM-ACR Pneumothorax uses relative."""

    frozen: bool = False
    """Train only the decoder, on the encoder as it is."""

    label_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training patients whose masks are used."""

    label_draw: Annotated[Int, Field(ge=0)] = 0
    """Number of the draw of that fraction."""

    foreground: Fraction = 0.5
    """Fraction of the crops that are centred on a voxel of a class, each class in turn; the others are anywhere.
    Source: nnU-Net, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z), takes a third; our choice."""

    size: Annotated[Int, Field(ge=16, le=2048)] | None = None
    """Side of a crop and of the windows in prediction, in pixels or voxels, a multiple of the encoder's largest stride;
    null uses views.size."""

    zoom: tuple[Positive, Positive] = (0.8, 1.25)
    """Range of the side of the part that a crop shows, relative to `size`. Source: nnU-Net scales by 0.7 to 1.4; our
    choice."""

    channels: Annotated[Int, Field(ge=4)] = 16
    """Channels of the decoder at full resolution; deeper levels have those of the encoder. nnU-Net's decoder has its
    own. Source: segmentation_models.pytorch."""

    epochs: Count = 60
    """Largest number of passes over the training masks; early stopping may end training before."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 8
    """Crops per step."""

    least_steps: Count = 20
    """Smallest number of steps per epoch; with few masks, an epoch uses each of them several times, in new crops."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimiser."""

    lr: Positive = 1e-3
    """Peak learning rate; it is not scaled with the batch size."""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.05
    """Weight decay: of all parameters for SGD, not of norms and biases for AdamW."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 1.0
    """Epochs in which the learning rate rises linearly from 0 to `lr`."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Schedule of the learning rate."""

    milestones: tuple[Positive, ...] = (40.0, 50.0)
    """Epochs at which schedule `step` divides the learning rate by ten."""

    patience: Annotated[Int, Field(ge=0)] = 20
    """Epochs without a better Dice on val after which training stops; 0 disables early stopping. The best epoch is kept
    in any case."""

    overlap: Annotated[Float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows when whole images are segmented. Source: nnU-Net."""

    tolerance: Positive = 1.0
    """Distance, in mm up to which surfaces agree, for the surface Dice; for images in pixels, unless all scored ones
    state their pixel spacing in DICOM. Choose what two readers differ by. Source: Nikolov et al. 2018
    (arXiv:1809.04430)."""

    @field_validator("zoom")
    @classmethod
    def _ordered(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError(f"the first number, {zoom[0]:g}, must not be above the second, {zoom[1]:g}")
        return zoom


class Range(Settings):
    """A range of numbers."""

    low: Float
    """Smallest value."""

    high: Float
    """Largest value."""

    log: bool = False
    """Sample on a logarithmic scale, for values that span orders of magnitude."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}{', and above 0' if self.log else ''}")
        return self


# Distinguished by their form, so that an error in one is not reported for the other too.
Possible = Annotated[
    Annotated[tuple[Any, ...], Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda possible: "choices" if isinstance(possible, list | tuple) else "range"),
]


class TuneSettings(Settings):
    """The search of `medmoco tune`."""

    space: dict[str, Possible] = Field(default={})
    """Search space: each setting with a list of choices or a range {low, high, log}, such as {train.lr: {low: 0.003,
    high: 0.3, log: true}, method.queue_size: [1024, 4096]}."""

    trials: Count = 20
    """Total number of pretraining runs; the first uses the settings as given. Source: the next four are random."""

    epochs: Count | None = None
    """Passes of each trial over the training split; null uses train.epochs."""

    label: str | None = None
    """Label whose AUROC is maximised; null uses the mean over data.labels."""

    @field_validator("space", mode="before")
    @classmethod
    def _lists_or_ranges(cls, space: Any) -> Any:
        for key, possible in space.items() if isinstance(space, dict) else ():
            is_range = isinstance(possible, dict) and {"low", "high"} <= possible.keys() <= {"low", "high", "log"}
            are_choices = isinstance(possible, list | tuple) and len(possible) > 0
            if not (are_choices or isinstance(possible, Range) or is_range):
                raise ValueError(f"give {key} a list of choices, or {{low: ..., high: ..., log: true}}")
        return space
