"""A trained segmentation network with everything needed to use it, and its folder.

The folder contains segmenter.safetensors, with the weights, and segmenter.json, with the classes and the preprocessing;
no paths, patients or machines. `segment` writes one into its run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from medmoco import __version__
from medmoco.config import ConfigSource, Float, Fraction, Int, ModelSettings, RunSettings, Settings, load
from medmoco.data.loading.preprocessing import CanvasPart, NormalisationPart, Preprocessing, without_data
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.supervised.model_folder import ModelFolder
from medmoco.models.backbones import create_backbone
from medmoco.segmentation.annotated.cases import place_image
from medmoco.segmentation.annotated.grids import onto_image
from medmoco.segmentation.learning import probabilities_of
from medmoco.segmentation.masks.masks import Classes, PredictedMask
from medmoco.segmentation.networks import SegmentationNetwork, create_network
from medmoco.training.device import choose_device
from medmoco.utils.files import PathLike

SEGMENTER = "segmenter"
"""Its folder in a run folder."""
WEIGHTS, FACTS = "segmenter.safetensors", "segmenter.json"
_FOLDER = ModelFolder("segmenter", WEIGHTS, FACTS, "`medmoco segment`")


class SegmenterFacts(Settings):
    """The content of segmenter.json."""

    format: Literal[1]
    classes: Annotated[dict[str, Int], Field(min_length=1)]
    ignore: Int | None
    backbone: str
    channels: Int
    size: Annotated[Int, Field(ge=16)]
    overlap: Fraction
    data: CanvasPart
    views: NormalisationPart
    encoder: dict[str, str | Int | None]
    val_dice: Float
    seed: Int
    medmoco: str
    sha256: str

    def apply_to(self, settings: RunSettings) -> RunSettings:
        """Return settings that prepare and segment images as in training, without a pack."""
        return settings.model_copy(update={
            "data": settings.data.model_copy(update={**dict(self.data), "pack": None}),
            "views": settings.views.model_copy(update={**dict(self.views), "size": self.size}),
            "model": settings.model.model_copy(update={"backbone": self.backbone, "init": None}),
            "segmentation": settings.segmentation.model_copy(
                update={"channels": self.channels, "overlap": self.overlap, "frozen": False}
            ),
        })  # fmt: skip


@dataclass(frozen=True, repr=False)
class Segmenter:
    """A segmentation network with the preprocessing of its images.

    Attributes:
        module: (B, C, S, S) -> (B, 1 + classes, S, S), or the same in 3-D, in eval mode. A plain `nn.Module`.
        classes: The classes, and their values in files.
        facts: How it was made.
        settings: Those that it prepares images with.
        folder: Folder that it was loaded from.

    Examples:
        >>> import medmoco
        >>> segmenter = medmoco.load_segmenter("runs/masks")  # doctest: +SKIP
        >>> segmenter.segment("film.dcm").numbers.shape  # doctest: +SKIP
    """

    module: SegmentationNetwork
    classes: Classes
    facts: SegmenterFacts
    settings: RunSettings
    folder: Path | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to the levels of a window."""
        return Preprocessing(**dict(self.facts.data), **dict(self.facts.views), size=self.facts.size)

    def segment(self, image: PathLike, *, frame: int = 1, series: str = "", device: str | None = None) -> PredictedMask:
        """Return the class of each pixel or voxel of an image, on its own grid.

        Args:
            image: A file, or the folder of a DICOM series.
            frame: Frame of a DICOM file or page of a TIFF file, from 1.
            series: SeriesInstanceUID of a volume, if its folder has several series.
            device: Device such as "cuda"; by default a GPU if there is one.

        Raises:
            ImageError: the image cannot be used; the message contains no path.
            SettingsError: the device is not available.
        """
        where = choose_device(self.settings.train) if device is None else torch.device(device)
        placed = place_image(Path(image), self.settings.data, frame=frame, series=series)
        scores = probabilities_of(self.module.to(where), [placed.canvas.pixels], self.settings, where, "fp32")[0]
        affine = placed.image.affine if self.facts.data.dimensions == 3 else None
        return PredictedMask(onto_image(scores, placed.grid), affine)

    def __repr__(self) -> str:
        what = "volumes" if self.facts.data.dimensions == 3 else "images"
        return f"Segmenter({self.facts.backbone}, {', '.join(self.classes.names)} in {what})"


def save_segmenter(
    folder: Path,
    model: SegmentationNetwork,
    classes: Classes,
    settings: RunSettings,
    *,
    encoder: Mapping[str, Any],
    val_dice: float,
) -> None:
    """Write the folder of a segmenter, replacing an existing one.

    Args:
        folder: The folder.
        model: The trained network.
        classes: Its classes.
        settings: Those of the run.
        encoder: `Provenance.record` of the encoder before training.
        val_dice: Its Dice on val.

    Raises:
        CheckpointError: the weights are not finite, or the folder cannot be written.
    """
    _FOLDER.write(folder, state_of(model), SegmenterFacts, {
        "format": 1,
        "classes": dict(zip(classes.names, classes.values, strict=True)),
        "ignore": classes.ignore,
        "backbone": settings.model.backbone,
        "channels": settings.segmentation.channels,
        "size": settings.views.size,
        "overlap": settings.segmentation.overlap,
        "data": {key: getattr(settings.data, key) for key in CanvasPart.model_fields},
        "views": {key: getattr(settings.views, key) for key in NormalisationPart.model_fields},
        "encoder": dict(encoder),
        "val_dice": val_dice,
        "seed": settings.seed,
        "medmoco": __version__,
    })  # fmt: skip


def state_of(model: SegmentationNetwork) -> dict[str, Tensor]:
    """Return the weights; those of the encoder are named as its library does, after "backbone."."""
    return {name.replace("backbone.net.", "backbone.", 1): value for name, value in model.state_dict().items()}


def is_segmenter(folder: Path) -> bool:
    """Return whether a folder, or its subfolder segmenter, contains a segmenter."""
    return (_folder_of(folder) / FACTS).is_file()


def _folder_of(folder: Path) -> Path:
    """Return the folder of the segmenter in a run folder; any other folder as it is."""
    return folder / SEGMENTER if (folder / SEGMENTER / FACTS).is_file() else folder


def load_segmenter(folder: PathLike, config: ConfigSource | None = None) -> Segmenter:
    """Load a segmentation network that `segment` has trained.

    Args:
        folder: Run folder of `segment`, or its subfolder segmenter.
        config: Settings of the machine, such as the device. They do not change the preprocessing.

    Returns:
        The network, in eval mode on the CPU.

    Raises:
        CheckpointError: it is not such a folder, is damaged, or was written by another version.
        SettingsError: the settings are invalid.

    Examples:
        >>> import medmoco
        >>> segmenter = medmoco.load_segmenter("runs/masks")  # doctest: +SKIP
        >>> segmenter.segment("case.nii.gz").numbers.shape  # doctest: +SKIP
    """
    path = _folder_of(Path(folder))
    facts = _FOLDER.read_facts(path, SegmenterFacts)
    content = _FOLDER.read_weights(path, facts.sha256)
    settings = facts.apply_to(without_data() if config is None else load(config))
    try:
        backbone = create_backbone(
            ModelSettings(backbone=facts.backbone), seed=0, size=facts.size, channels=settings.data.channel_count,
            dimensions=facts.data.dimensions,
        )  # fmt: skip
        classes = Classes(tuple(facts.classes), tuple(facts.classes.values()), facts.ignore)
        network = create_network(backbone, settings, len(classes))
        network.load_state_dict({
            f"backbone.net.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else name: value
            for name, value in load_tensors(content).items()
        })  # fmt: skip
    except SettingsError as error:
        raise CheckpointError(f"{path / FACTS}: {error}") from None
    except (SafetensorError, RuntimeError):
        raise _FOLDER.mismatch(path, f"{facts.backbone} with {len(facts.classes)} classes") from None
    return Segmenter(network.eval(), classes, facts, settings, path)
