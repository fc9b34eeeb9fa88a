"""One frozen tree of settings: defaults < recipe < YAML file < command line.

The docstring under a field is its help text; the words after "Source:" say where the default comes from, and
`medmoco config` prints them. Presets (`views.recipe`, `method.name`) are plain dictionaries of field values that stand
below whatever the user writes. This module imports no torch, so that the command line starts fast.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medmoco.errors import SettingsError

Tree = dict[str, Any]


def _refuse_bool_and_text(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is not a number")
    return value


Int = Annotated[int, BeforeValidator(_refuse_bool_and_text)]
Float = Annotated[float, BeforeValidator(_refuse_bool_and_text)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Positive = Annotated[Float, Field(gt=0)]
Count = Annotated[Int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every node: frozen, unknown keys refused, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class LabelPolicy(Settings):
    """What a label cell that is neither 0 nor 1 counts as: left out, 0 or 1."""

    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    """A cell of -1. Source: torchxrayvision leaves uncertain labels out; MoCo-CXR counts them as one."""

    missing: Literal["ignore", "zero", "one"] = "ignore"
    """A blank cell. Source: torchxrayvision leaves missing labels out; MoCo-CXR counts them as zero."""


class DataSettings(Settings):
    """Which images, and how a file becomes a canvas."""

    manifest: Path
    """Folder with train.csv, val.csv and test.csv, or one CSV with a Split column."""

    root: str
    """Folder that the Path column is relative to; {split} in it becomes train, val or test."""

    labels: dict[str, LabelPolicy] = {}
    """Label columns: a list of names, or a mapping from name to policy."""

    canvas_size: Annotated[Int, Field(ge=16, le=4096)] = 256
    """Longer side in pixels of the stored image that views are cut from. Source: 256 for views of 224."""

    bit_depth: Literal[8, 16] = 8
    """Bits per canvas pixel. Source: measured, 8-bit arithmetic is ten times faster than float32."""

    window: Literal["voi", "full"] | tuple[Float, Positive] = "voi"
    """Grey levels of images deeper than 8 bits: the file's VOI window, its full range, or [centre, width].
    Source: DICOM PS3.3 C.11.2."""

    max_pixels: Count = 100_000_000
    """Larger images are refused before decoding. Source: the largest detector plates hold some 30 million pixels."""

    max_bytes: Count = 2_000_000_000
    """Larger files are refused unopened. Source: tomosynthesis and ultrasound loops reach 1 to 2 GB."""

    max_frames: Count = 10_000
    """Files of more frames are refused before decoding. Source: enhanced CT and MR series hold some thousands."""

    decode_seconds: Positive = 60.0
    """`check` and `pack` give up a file after this time. Source: measured, JPEG 2000 takes 0.2 s per million pixels."""

    decode_megabytes: Annotated[Int, Field(ge=64)] = 4096
    """`check` and `pack` give up a file above it. Source: measured, an image of `max_pixels` takes up to 1,600."""

    allow_symlinks: bool = False
    """Symbolic links may lead out of `root`; those within it, and a root that is itself a link, always work."""

    pack: Annotated[str, Field(min_length=1)] | None = None
    """Folder or URL (s3://, gs://, ...) of what `medmoco pack` made: canvases are read from it, not from the files.
    `medmoco pretrain` makes a folder that is not there yet."""

    pack_cache: Path | None = None
    """Folder on a disk of this machine that a pack at a URL is copied to, once."""

    pack_failures: Literal["refuse", "leave_out"] = "refuse"
    """What to do about rows whose image could not be packed."""

    bad_images: Literal["refuse", "quarantine"] = "refuse"
    """What to do when an image turns out to be unusable while training: end the run, or put another image of the split
    in its place in the batch and list its row in quarantine.csv."""

    bad_images_budget: Annotated[Int, Field(ge=0)] = 100
    """So many images may be put in quarantine; one more ends the run, as a disk, a download or a decoder is to blame.
    Source: a judgement, a tenth of a per cent of 100,000 images."""

    workers: Annotated[Int, Field(ge=0)] = 2
    """Data worker processes; 0 loads in the training process. Source: measured, two cores feed any current GPU."""

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("labels"), list):
            return {**tree, "labels": {name: {} for name in tree["labels"]}}
        return tree


RECIPES: dict[str, Tree] = {
    "xray": {},
    "moco_v1": {
        "crop_scale": [0.2, 1.0], "rotation": 0.0, "brightness": 0.4, "contrast": 0.4, "gamma": 0.0,
        "jitter_probability": 1.0, "blur_probability": 0.0, "noise_probability": 0.0, "flip_probability": 0.5,
    },
    "moco_v2": {
        "crop_scale": [0.2, 1.0], "rotation": 0.0, "brightness": 0.4, "contrast": 0.4, "gamma": 0.0,
        "jitter_probability": 0.8, "blur_probability": 0.5, "noise_probability": 0.0, "flip_probability": 0.5,
    },
    "moco_cxr": {
        "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "rotation": 10.0, "brightness": 0.0, "contrast": 0.0,
        "gamma": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0, "noise_probability": 0.0,
        "flip_probability": 0.5,
    },
}  # fmt: skip
"""Source: moco_v1 and moco_v2, facebookresearch/moco `main_moco.py`, hue, saturation and grayscale left out because
they do nothing to one channel; moco_cxr, Sowrirajan et al. 2021 (arXiv:2010.05352), section 3.2."""

PROTOCOLS: dict[str, Tree] = {
    "end_to_end": {},
    "linear_sgd": {
        "augmentation": "crop_flip", "epochs": 100, "global_batch_size": 256, "optimizer": "sgd", "lr": 30.0,
        "head_lr": 30.0, "weight_decay": 0.0, "warmup_epochs": 0.0, "schedule": "step", "patience": 0,
        "least_steps": 1,
    },
}  # fmt: skip
"""Source: linear_sgd, facebookresearch/moco `main_lincls.py`."""

METHODS: dict[str, Tree] = {
    "moco_v1": {"temperature": 0.07, "projector": "linear"},
    "moco_v2": {"temperature": 0.2, "projector": "mlp"},
}
"""Source: He et al. 2020 (arXiv:1911.05722) and Chen et al. 2020 (arXiv:2003.04297)."""


class ViewSettings(Settings):
    """How a canvas becomes a view. Presets by `recipe`; any key given here replaces the preset's."""

    recipe: Literal["xray", "moco_v1", "moco_v2", "moco_cxr"] = "xray"
    """Preset that the other keys of this group start from."""

    size: Annotated[Int, Field(ge=16, le=2048)] = 224
    """Side of a view in pixels. Source: He et al. 2020."""

    crop_scale: tuple[Fraction, Fraction] = (0.3, 1.0)
    """Area of the crop as a share of the image. Source: moderate crops keep the organ in view; MoCo v2 has 0.2."""

    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect ratio of the crop. Source: Szegedy et al. 2015 (arXiv:1409.4842)."""

    flip_probability: Fraction = 0.5
    """Mirror left and right. Source: MoCo-CXR; set 0 where the side is the finding."""

    rotation: Annotated[Float, Field(ge=0, le=180)] = 10.0
    """Largest rotation in degrees, either way. Source: MoCo-CXR."""

    brightness: Annotated[Float, Field(ge=0, le=1)] = 0.3
    """Largest relative change of brightness. Source: MoCo v2 has 0.4, which turns the mediastinum white too often."""

    contrast: Annotated[Float, Field(ge=0, le=1)] = 0.4
    """Largest relative change of contrast about the image's mean. Source: MoCo v2."""

    gamma: Annotated[Float, Field(ge=0, le=1)] = 0.2
    """Largest change of the exponent, as |ln gamma|. Source: detectors differ by their tone curve."""

    jitter_probability: Fraction = 0.8
    """Chance that brightness, contrast and gamma change at all. Source: MoCo v2."""

    blur_probability: Fraction = 0.5
    """Chance of a Gaussian blur. Source: MoCo v2."""

    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Blur in pixels of a 224-pixel view; it scales with `size`. Source: MoCo v2."""

    noise_probability: Fraction = 0.5
    """Chance of added Gaussian noise. Source: quantum noise differs with dose."""

    noise: Annotated[Float, Field(ge=0, le=0.5)] = 0.03
    """Largest standard deviation of the noise as a share of white, in a 224-pixel view; it scales with `size`, as
    smaller pixels collect fewer quanta."""

    cutout_probability: Fraction = 0.0
    """Chance that one rectangle is filled with the image's mean."""

    cutout_scale: tuple[Fraction, Fraction] = (0.02, 0.2)
    """Area of the rectangle as a share of the view. Source: Zhong et al. 2017 (arXiv:1708.04896)."""

    mean: Fraction = 0.5
    """Subtracted from pixels in 0..1 on the training device. Source: MoCo-CXR has 0.502."""

    std: Positive = 0.25
    """Divides after the mean. Source: close to the spread of windowed radiographs."""

    @model_validator(mode="after")
    def _ranges(self) -> ViewSettings:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "cutout_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low:g}, {high:g}] is not [low, high]")
        if self.crop_scale[0] <= 0:
            raise ValueError("crop_scale must be above 0")
        return self


class ModelSettings(Settings):
    """The encoder."""

    backbone: str = "resnet50"
    """A timm model name, monai/NAME for a MONAI network, or moco-v3/vit_small. Source: He et al. 2020."""

    init: Path | None = None
    """Weights file to start from, of medmoco or others (docs/import.md); RGB first layers are summed to gray."""


class MethodSettings(Settings):
    """Momentum contrast. Presets by `name`; any key given here replaces the preset's."""

    name: Literal["moco_v1", "moco_v2"] = "moco_v2"
    """Preset that the other keys of this group start from."""

    queue_size: Count = 65536
    """Negative keys held. Must not exceed the number of training images. Source: He et al. 2020."""

    key_momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    """Share of the key encoder kept at each step. Source: He et al. 2020."""

    temperature: Positive = 0.2
    """Divides the similarities. Source: Chen et al. 2020; v1 has 0.07."""

    projector: Literal["linear", "mlp", "mlp_bn"] = "mlp"
    """Layers between features and embedding; mlp_bn normalises the hidden one, as v3. Source: Chen et al. 2020."""

    embedding_dim: Count = 128
    """Width of the embedding. Source: He et al. 2020."""

    queue_sharded: bool = False
    """Each process keeps a part of the queue instead of all of it: for queues that take much memory."""

    batch_norm_splits: Count = 1
    """Batch norm over this many groups of the batch, keys shuffled between them; at least one for each process.
    Source: facebookresearch/moco issue 47."""


class TrainSettings(Settings):
    """The training loop."""

    epochs: Count = 200
    """Passes over the training split. Source: He et al. 2020."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 256
    """Images per step over all processes. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Source: He et al. 2020."""

    lr: Positive = 0.03
    """Peak learning rate, literally: nothing scales it. Source: He et al. 2020."""

    sgd_momentum: Fraction = 0.9
    """Momentum of SGD. Source: He et al. 2020."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-4
    """On every parameter for SGD; not on norms and biases for AdamW. Source: He et al. 2020."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Source: Chen et al. 2020."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 0.0
    """Linear rise from 0 to `lr`. Source: He et al. 2020 have none."""

    milestones: tuple[Positive, ...] = (120.0, 160.0)
    """Epochs at which schedule `step` divides the rate by ten. Source: He et al. 2020."""

    accumulation_steps: Count = 1
    """Parts that each process works through its share of the batch in: for little memory."""

    clip_norm: Positive | None = None
    """Largest gradient norm; null leaves gradients alone."""

    precision: Literal["device", "fp32", "bf16", "fp16"] = "device"
    """device: bf16 on GPUs that have it and on CPUs with AMX, else fp16 on GPUs and fp32 on CPUs. Source: measured."""

    device: Literal["any", "cpu", "cuda"] = "any"
    """any: the GPU if there is one."""

    threads: Annotated[Int, Field(ge=0)] = 0
    """CPU threads of the training process; 0 leaves torch's choice."""

    channels_last: bool = True
    """Memory layout. Source: measured, 1.4x for bf16 on a CPU."""

    compile: bool = False
    """torch.compile. Source: measured, no gain on a CPU."""

    max_skipped: Count = 20
    """A step without a finite gradient is skipped; so many of them in a row end the run."""

    hang_seconds: Positive = 600.0
    """A process that does not answer for so long counts as hung; a data worker, after three quarters of it.
    Source: PyTorch waits 10 minutes for NCCL."""

    log_every: Count = 10
    """Steps between records of metrics.jsonl."""

    checkpoint_every: Count = 500
    """Steps between checkpoints; one is also written after the last step and on a stop."""

    knn_every: Annotated[Int, Field(ge=0)] = 5
    """Epochs between kNN AUROCs on the validation split, where labels are named; 0 is never."""


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

    boxes: Path | None = None
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


class RunSettings(Settings):
    """All settings of a run."""

    out: Path
    """Run folder."""

    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    """Of the weights at the start, of the order of samples and of every view."""

    data: DataSettings
    views: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    detection: DetectionSettings = DetectionSettings()

    PRESETS: ClassVar[dict[str, tuple[str, dict[str, Tree]]]] = {
        "views": ("recipe", RECIPES),
        "method": ("name", METHODS),
        "finetune": ("protocol", PROTOCOLS),
    }

    @model_validator(mode="after")
    def _consistent(self) -> RunSettings:
        batch, splits = self.train.global_batch_size, self.method.batch_norm_splits
        if batch % splits or batch // splits < 2:
            raise ValueError(
                f"method.batch_norm_splits {splits} must split train.global_batch_size {batch} into groups of 2 or more"
            )
        if self.train.warmup_epochs >= self.train.epochs:
            raise ValueError(f"train.warmup_epochs {self.train.warmup_epochs:g} must be below train.epochs")
        if self.finetune.warmup_epochs >= self.finetune.epochs:
            raise ValueError(f"finetune.warmup_epochs {self.finetune.warmup_epochs:g} must be below finetune.epochs")
        if self.detection.warmup_epochs >= self.detection.epochs:
            raise ValueError(f"detection.warmup_epochs {self.detection.warmup_epochs:g} must be below detection.epochs")
        if self.data.canvas_size < self.views.size // 2:
            raise ValueError(
                f"data.canvas_size {self.data.canvas_size} is less than half of views.size {self.views.size}; raise it"
            )
        return self


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number (YAML 1.2; PyYAML is 1.1)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise SettingsError(f"line {key_node.start_mark.line + 1}: key {key!r} is written twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except SettingsError as error:
        raise SettingsError(f"{where}, {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def _read_file(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: settings are a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def _read_overrides(overrides: Sequence[str]) -> Tree:
    tree: Tree = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingsError(f"'{text}' is not key=value, such as train.epochs=10")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _parse_yaml(value, f"'{text}'")
    return tree


def _merge(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        # Labels are the user's own names: giving them again replaces the set instead of adding to it.
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "labels"
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.lr", 0.03) for every leaf of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _presets_for(user: Tree) -> Tree:
    """Return the field values that the chosen recipe and method put below the user's own."""
    presets: Tree = {}
    for group, (selector, choices) in RunSettings.PRESETS.items():
        given = user.get(group)
        default = RunSettings.model_fields[group].annotation.model_fields[selector].default  # type: ignore[union-attr]
        name = given.get(selector, default) if isinstance(given, dict) else default
        presets[group] = choices.get(name, {}) if isinstance(name, str) else {}
    return presets


def _known_keys(location: Sequence[Any]) -> list[str]:
    node: Any = RunSettings
    for key in location:
        field = node.model_fields.get(key) if isinstance(node, type) and issubclass(node, BaseModel) else None
        annotation = field.annotation if field else None
        candidates = [annotation, *get_args(annotation)]
        node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), LabelPolicy)
    return list(node.model_fields)


def _explain(error: ValidationError) -> str:
    """Put pydantic's findings into at most four lines, one per key, without its jargon."""
    lines = []
    for finding in error.errors():
        location = [str(part) for part in finding["loc"]]
        parent, key = location[:-1], ".".join(location)
        if finding["type"] == "extra_forbidden":
            known = _known_keys(parent)
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean '{'.'.join([*parent, close[0]])}'?" if close else f"known: {', '.join(known)}"
            lines.append(f"unknown key '{key}'; {hint}")
        elif finding["type"] == "missing":
            lines.append(f"'{key}' is required: {_help_of(location)}")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(f"'{key}': {message}" if key else message)
    shown = list(dict.fromkeys(lines))
    more = [f"and {len(shown) - 3} more"] if len(shown) > 4 else []
    return "\n".join(shown[: 3 if more else 4] + more)


def _field_of(dotted: Sequence[str]) -> Any:
    node: Any = RunSettings
    field = None
    for key in dotted:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or key not in node.model_fields:
            return None
        field = node.model_fields[key]
        node = field.annotation
    return field


def _help_of(dotted: Sequence[str]) -> str:
    field = _field_of(dotted)
    return (field.description or "see docs" if field else "see docs").split(" Source:")[0]


def load(path: Path | None, overrides: Sequence[str] = ()) -> RunSettings:
    """Read settings from a YAML file and `key=value` overrides.

    Args:
        path: YAML file, or None to use the overrides alone.
        overrides: Texts such as "train.lr=1e-3"; values are read as YAML.

    Raises:
        SettingsError: unknown or duplicate key, wrong type, impossible value; at most five lines.
    """
    file_tree = _read_file(path) if path else {}
    user = _merge(file_tree, _read_overrides(overrides))
    try:
        return RunSettings.model_validate(_merge(_presets_for(user), user))
    except ValidationError as error:
        sources = [str(path)] * bool(path) + ["command line"] * bool(overrides)
        raise SettingsError(f"{' and '.join(sources)}:\n{_explain(error)}") from None


def as_tree(settings: BaseModel) -> Tree:
    """Return plain nested values: what YAML, JSON and checkpoints hold."""
    return settings.model_dump(mode="json")


def to_yaml(tree: Tree) -> str:
    """Write a settings tree as YAML that `load` reads back."""
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def describe(path: Path | None, overrides: Sequence[str] = ()) -> str:
    """Return the resolved tree as YAML, each line with where its value comes from."""
    resolved = as_tree(load(path, overrides))
    command_line = _read_overrides(overrides)
    file_tree = _read_file(path) if path else {}
    user = _merge(file_tree, command_line)
    layers = [
        (dict(flatten(command_line)), "command line"),
        (dict(flatten(file_tree)), str(path)),
        (dict(flatten(_presets_for(user))), "preset"),
    ]
    lines: list[str] = []
    _describe_node(resolved, [], layers, lines)
    return "\n".join(lines) + "\n"


def _describe_node(node: Tree, parents: list[str], layers: list[tuple[Tree, str]], lines: list[str]) -> None:
    indent = "  " * len(parents)
    for key, value in node.items():
        path = [*parents, key]
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:")
            _describe_node(value, path, layers, lines)
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        lines.append(f"{f'{indent}{key}: {text}':<44} # {_source_of(path, layers)}")


def _source_of(path: list[str], layers: list[tuple[Tree, str]]) -> str:
    dotted = ".".join(path)
    for leaves, name in layers:
        if any(dotted == leaf or dotted.startswith(f"{leaf}.") for leaf in leaves):
            if name == "preset":
                group, (selector, _) = path[0], RunSettings.PRESETS[path[0]]
                return f"preset of {group}.{selector}"
            return name
    field = _field_of(path)
    source = (field.description or "").partition("Source: ")[2].rstrip(".") if field else ""
    return f"default: {source}" if source else "default"
