"""The complete settings of a run, and the checks between its groups."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from medmoco.config.base import Int, Settings, Tree
from medmoco.config.data import DataSettings
from medmoco.config.evaluation import (
    PROTOCOLS,
    DetectionSettings,
    EvaluateSettings,
    FinetuneSettings,
    SegmentationSettings,
    TuneSettings,
)
from medmoco.config.paths import PathSetting
from medmoco.config.training import (
    METHODS,
    DecoderSettings,
    MethodSettings,
    ModelSettings,
    PositiveSettings,
    TrainSettings,
)
from medmoco.config.views import RECIPES, VOLUME_RECIPES, ViewSettings

RETIRED: Tree = {"method.queue_sharded": False}
"""Settings that earlier versions wrote into config.yaml and checkpoints, and their default then.

At that default they are ignored, so that old runs load and resume; any other value is refused with the reason.
"""

_REASONS = {"method.queue_sharded": "every process now holds the whole queue, 34 MB for 65,536 keys of 128 numbers"}


class RunSettings(Settings):
    """All settings of a run."""

    out: PathSetting
    """Run folder to write."""

    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    """Random seed of the initial weights, the order of the samples and every view."""

    data: DataSettings
    """The images to read; `data.manifest` and `data.root` are required."""

    views: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    method: MethodSettings = MethodSettings()
    positives: PositiveSettings = PositiveSettings()
    decoder: DecoderSettings = DecoderSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    detection: DetectionSettings = DetectionSettings()
    segmentation: SegmentationSettings = SegmentationSettings()
    tune: TuneSettings = TuneSettings()

    PRESETS: ClassVar[dict[str, tuple[str, dict[str, Tree]]]] = {
        "views": ("recipe", RECIPES | VOLUME_RECIPES),
        "method": ("name", METHODS),
        "finetune": ("protocol", PROTOCOLS),
    }

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, tree: Any) -> Any:
        """Return the tree without settings that no longer exist."""
        for key, default in RETIRED.items():
            group, name = key.split(".")
            given = tree.get(group) if isinstance(tree, dict) else None
            if isinstance(given, dict) and name in given:
                if given[name] != default:
                    raise ValueError(f"{key} was removed: {_REASONS[key]}.\nDelete the key.")
                tree = {**tree, group: {k: v for k, v in given.items() if k != name}}
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> RunSettings:
        batch, splits = self.train.global_batch_size, self.method.batch_norm_splits
        if batch % splits or batch // splits < 2:
            raise ValueError(
                f"method.batch_norm_splits {splits} must divide train.global_batch_size {batch} into groups of at"
                " least 2"
            )
        if self.method.predictor and not self.decoder.contrast:
            raise ValueError("method.predictor has no effect with decoder.contrast 0; set it to false")
        if self.positives.image == "patient" and self.method.negatives == "other_images":
            raise ValueError(
                "method.negatives=other_images repels a query from its patient's other images, but\n"
                "positives.image=patient attracts them; set method.negatives to other_patients or all"
            )
        for group in ("train", "finetune", "detection", "segmentation"):
            training = getattr(self, group)
            if training.warmup_epochs >= training.epochs:
                raise ValueError(f"{group}.warmup_epochs {training.warmup_epochs:g} must be below {group}.epochs")
        self._check_channels()
        self._check_dimensions()
        if self.data.dimensions == 2 and self.data.canvas_size < self.views.size // 2:
            raise ValueError(
                f"data.canvas_size {self.data.canvas_size} is less than half of views.size {self.views.size}; raise it"
            )
        return self

    def _check_channels(self) -> None:
        """Refuse view settings that do not fit data.channels."""
        channels = self.data.channel_count
        for name in ("mean", "std"):
            value = getattr(self.views, name)
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(
                    f"views.{name} has {len(value)} numbers for {channels} channels; give one, or one per channel"
                )
        for name in ("saturation", "hue", "grayscale_probability"):
            if getattr(self.views, name) and self.data.channels != "rgb":
                raise ValueError(
                    f"views.{name} needs colour images, but data.channels is {self.data.channels}; set it to 0"
                )

    def _check_dimensions(self) -> None:
        """Refuse settings for images with volumes, and the reverse."""
        recipe, volumes = self.views.recipe, self.data.dimensions == 3
        if volumes and recipe not in VOLUME_RECIPES:
            raise ValueError(f"views.recipe {recipe} is for images; with data.dimensions 3, set it to ct or mr")
        if not volumes and recipe in VOLUME_RECIPES:
            raise ValueError(
                f"views.recipe {recipe} is for volumes; set data.dimensions to 3, or choose another recipe"
            )
        if not volumes:
            return
        for key, value in {
            "decoder.empty": self.decoder.empty,
            "finetune.head": self.finetune.head, "finetune.augmentation": self.finetune.augmentation,
            "model.fixed_patches": self.model.fixed_patches,
        }.items():  # fmt: skip
            group, name = key.split(".")
            default = type(getattr(self, group)).model_fields[name].default
            if value != default:
                raise ValueError(f"{key} {value} is not available for volumes; set it to {default}")
