"""Settings of how files are read."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medmoco.config.base import Count, Float, Int, Positive, Seconds, Settings, Tree
from medmoco.config.paths import PathSetting, PathText
from medmoco.config.yaml_text import shown
from medmoco.errors import SettingsError


def _refuse_other_channels(value: Any) -> Any:
    if (isinstance(value, str) and value in ("gray", "rgb")) or (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256
    ):
        return value
    raise ValueError(f"{shown(value)} is not gray, rgb or a number of bands from 1 to 256")


Channels = Annotated[Literal["gray", "rgb"] | int, BeforeValidator(_refuse_other_channels)]


def channel_count(channels: Channels) -> int:
    """Return the number of channels that a value of `data.channels` stands for."""
    return channels if isinstance(channels, int) else {"gray": 1, "rgb": 3}[channels]


RESERVED_COLUMNS = (
    "Path", "PatientID", "StudyID", "SeriesInstanceUID", "Split", "Frame", "ViewPosition", "Sex", "Age", "Laterality",
)  # fmt: skip
"""Columns of a manifest with a fixed meaning."""

NAMES = ("labels", "map")
"""Mappings whose keys are chosen by the user: a later layer replaces them as a whole instead of adding to them."""


def _refuse_other_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)} is not the name of a column; put it in quotes if it is")
    return value.strip()


ColumnName = Annotated[str, BeforeValidator(_refuse_other_text)]


def cell_text(text: str) -> str:
    """Return the text by which cells are compared with a map or a class: without case and surrounding spaces."""
    return text.strip().casefold()


def _as_map(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{shown(value)} is not a mapping from the text of cells to 1, 0, -1 or null")
    texts = {str(key).lower() if isinstance(key, bool) else str(key): number for key, number in value.items()}
    for text, number in texts.items():
        if isinstance(number, bool) or number not in (1, 0, -1, None):
            raise ValueError(f"{shown(text)}: {shown(number)} is not 1, 0, -1 (uncertain) or null (missing)")
    if len({cell_text(text) for text in texts}) < len(value):
        raise ValueError("a text appears twice; upper and lower case and surrounding spaces do not matter")
    return {text: number if number is None else int(number) for text, number in texts.items()}


CellMap = Annotated[dict[str, Literal[1, 0, -1] | None], BeforeValidator(_as_map)]


class LabelPolicy(Settings):
    """A label: the column with its cells, and how they are read."""

    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    """How to read a cell of -1. Source: torchxrayvision ignores uncertain labels; MoCo-CXR reads them as one."""

    missing: Literal["ignore", "zero", "one"] = "ignore"
    """How to read a blank cell. Source: torchxrayvision ignores missing labels; MoCo-CXR reads them as zero."""

    column: ColumnName | None = None
    """Column with the cells; by default, the one with the label's name."""

    map: CellMap | None = None
    """What cells of other texts mean, such as {yes: 1, no: 0, unclear: -1, n/a: null}; null means missing."""

    contains: ColumnName | None = None
    """Class whose presence is the label, if the cells are lists of classes, such as "Effusion|Mass"."""

    separator: Annotated[str, Field(min_length=1)] = "|"
    """Text between the classes of a list. Source: ChestX-ray14; PadChest needs a comma."""

    @property
    def policy(self) -> dict[str, str]:
        """What is written next to every score: how uncertain and missing cells are read."""
        return {"uncertain": self.uncertain, "missing": self.missing}

    @model_validator(mode="after")
    def _one_way_to_read(self) -> LabelPolicy:
        if self.contains and self.map:
            raise ValueError("give contains (for lists of classes) or map (for single values), not both")
        if self.separator != "|" and not self.contains:
            raise ValueError("separator has no effect without contains")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> Tree:
        """Leave out how cells are read if it is as usual, so that settings look as they did before it could differ."""
        usual = {name: LabelPolicy.model_fields[name].default for name in ("column", "map", "contains", "separator")}
        tree: Tree = serialize(self)
        return {key: value for key, value in tree.items() if key not in usual or value != usual[key]}


class JoinSettings(Settings):
    """A second table, of labels for example, whose columns are added to the rows of the manifest."""

    file: PathSetting
    """The second table: CSV or JSON lines."""

    on: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns whose cells identify the partner of a row: a name, or a list of names."""

    columns: dict[str, ColumnName] = Field(default_factory=dict)
    """Columns of the second table under another name: our name -> name in that file."""

    @model_validator(mode="before")
    @classmethod
    def _on_as_list(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("on"), str):
            return {**tree, "on": [tree["on"]]}
        return tree


class DataSettings(Settings):
    """The images to read, and how a file becomes a canvas (the decoded image at pack size)."""

    manifest: PathSetting
    """Folder with train.csv, val.csv and test.csv, or one CSV with a Split column; JSON lines work too."""

    root: PathText
    """Folder to which the Path column is relative; {split} in it is replaced by train, val or test."""

    labels: dict[str, LabelPolicy] = Field(default_factory=dict)
    """Label columns: a list of names, or a mapping from name to how its cells are read."""

    columns: dict[str, ColumnName] = Field(default_factory=dict)
    """Reserved columns under another name, such as {Path: "Image Index", PatientID: "Patient ID"}; a Path can also be
    composed of columns, as in "{Folder}/{File}.png"."""

    join: JoinSettings | None = None
    """A second table with more columns: {file: labels.csv, on: StudyID}."""

    where: str | None = None
    """Condition on the rows to use, such as 'Modality == "MR"'; the grammar is that of `evaluate.where`."""

    dimensions: Literal[2, 3] = 2
    """2 for images, 3 for volumes such as CT and MR series."""

    canvas_size: Annotated[Int, Field(ge=16, le=4096)] = 256
    """Longer side, in pixels, of the canvas from which views are cropped; images only. Source: 256 for views of 224."""

    spacing: tuple[Positive, Positive, Positive] | None = None
    """Distances between voxels, in mm, to which volumes are resampled: right to left, front to back and head to foot;
    null keeps those of each file. `medmoco check` recommends values for a data set."""

    channels: Channels = "gray"
    """Channels of a canvas: gray (colour images are converted), rgb, or the number of bands of NumPy and TIFF files."""

    scale: Literal["linear", "log"] = "linear"
    """Intensity scale of bands; log suits positive data that span orders of magnitude. Source: Merz et al., galaxies
    (grantmerz/moco)."""

    band_ranges: Annotated[tuple[tuple[Float, Float], ...], Field(min_length=1)] | None = None
    """Values [low, high] that become black and white, one pair for all bands or one per band; values outside are
    clipped. By default, 8-bit bands keep their full range and others are scaled from the minimum to the maximum of
    each image."""

    bit_depth: Literal[8, 16] = 8
    """Bits per canvas pixel. Source: measured, 8-bit arithmetic is ten times faster than float32."""

    window: Literal["voi", "full", "percentiles"] | tuple[Float, Positive] = "voi"
    """Window for images deeper than 8 bits: the file's VOI window, its full range, or [centre, width]. For volumes:
    [centre, width], in HU for CT, or for MR `percentiles`, from the 0.5th to the 99.5th within the body.
    Source: DICOM PS3.3 C.11.2; percentiles, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z)."""

    max_pixels: Count = 100_000_000
    """Images with more pixels are refused before decoding. Source: the largest detectors have about 30 million."""

    max_bytes: Count = 2_000_000_000
    """Larger files are refused without opening them. Source: tomosynthesis and ultrasound loops reach 1 to 2 GB."""

    max_voxels: Count = 600_000_000
    """Volumes with more voxels, in the file or on the canvas, are refused before decoding. Source: a CT of the whole
    body has 512 x 512 x 1,500."""

    max_frames: Count = 10_000
    """Files with more frames are refused before decoding. Source: enhanced CT and MR series have several thousand."""

    decode_seconds: Seconds = 60.0
    """Time limit of `check` and `pack` for decoding a file. Source: measured, JPEG 2000 takes 0.2 s per million
    pixels."""

    decode_megabytes: Annotated[Int, Field(ge=64)] = 4096
    """Memory limit of `check` and `pack` for decoding a file. Source: measured, an image of `max_pixels` takes up to
    1,600."""

    allow_symlinks: bool = False
    """Allow symbolic links that lead out of `root`; links within it, and a root that is itself a link, always work."""

    pack: PathText | None = None
    """Folder or URL (s3://, gs://, ...) of a pack made by `medmoco pack`; canvases are read from it instead of the
    files. `medmoco pretrain` creates the pack if the folder does not exist yet."""

    pack_cache: PathSetting | None = None
    """Local folder to which a pack at a URL is copied once."""

    pack_failures: Literal["refuse", "leave_out"] = "refuse"
    """What to do with rows whose image could not be packed."""

    bad_images: Literal["refuse", "quarantine"] = "refuse"
    """What to do when an image cannot be used during training: end the run (refuse), or replace it in the batch by
    another image of the split and list its row in quarantine.csv (quarantine)."""

    bad_images_budget: Annotated[Int, Field(ge=0)] = 100
    """Largest number of images in quarantine; more end the run, since the cause is then probably a disk, a download or
    a decoder. Source: our choice, 0.1 % of 100,000 images."""

    workers: Annotated[Int, Field(ge=0)] = 2
    """Number of data worker processes; with 0, the training process loads the data. Source: measured, two cores feed
    any current GPU."""

    def require_images(self, what: str) -> None:
        """Refuse volumes for something that only images have, such as "detection".

        Raises:
            SettingsError: `dimensions` is 3.
        """
        if self.dimensions == 3:
            raise SettingsError(f"{what} is available for images only, but data.dimensions is 3")

    @property
    def noun(self) -> str:
        """What messages call the rows: images or volumes."""
        return "volumes" if self.dimensions == 3 else "images"

    @property
    def channel_count(self) -> int:
        """Number of channels of a canvas."""
        return channel_count(self.channels)

    @model_validator(mode="after")
    def _volumes(self) -> DataSettings:
        if self.dimensions == 2:
            if self.spacing:
                raise ValueError("spacing applies to volumes: set dimensions to 3, or drop it")
            if self.window == "percentiles":
                raise ValueError("window percentiles applies to volumes: set dimensions to 3, or choose voi or full")
            return self
        if self.window in ("voi", "full"):
            raise ValueError(
                "volumes need a window: give data.window=[centre, width] in HU for CT, such as [40, 400] for soft"
                " tissue or\n[-600, 1500] for lungs, or data.window=percentiles for MR, which has no unit"
            )
        if self.channels != "gray":
            raise ValueError(f"channels {self.channels} applies to images; volumes have one channel")
        if self.canvas_size != type(self).model_fields["canvas_size"].default:
            raise ValueError("canvas_size applies to images; for volumes, spacing determines the size")
        return self

    @model_validator(mode="after")
    def _bands(self) -> DataSettings:
        if isinstance(self.channels, str):
            if self.scale != "linear" or self.band_ranges:
                raise ValueError("scale and band_ranges need bands: set channels to the number of bands, or drop them")
            return self
        if self.window != "voi":
            raise ValueError("window applies to gray and rgb; for bands, use band_ranges")
        ranges = self.band_ranges or ()
        if len(ranges) not in (0, 1, self.channels):
            raise ValueError(
                f"band_ranges has {len(ranges)} pairs for {self.channels} channels; give one pair, or one per channel"
            )
        for low, high in ranges:
            if low >= high or (self.scale == "log" and low <= 0):
                needs = "0 < low < high" if self.scale == "log" else "low < high"
                raise ValueError(f"band_ranges [{low:g}, {high:g}] must be [low, high] with {needs}")
        return self

    @model_validator(mode="after")
    def _reserved(self) -> DataSettings:
        for name in self.columns:
            if name not in RESERVED_COLUMNS:
                close = difflib.get_close_matches(name, RESERVED_COLUMNS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(RESERVED_COLUMNS)}"
                raise ValueError(f"columns: {shown(name)} is not a reserved column; {hint}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, tree: Any) -> Any:
        labels = tree.get("labels") if isinstance(tree, dict) else None
        if labels is None or isinstance(labels, dict):
            return tree
        names = [labels] if isinstance(labels, str) else labels
        if not isinstance(names, list | tuple):
            raise ValueError(f"labels: {shown(labels)} is not the name of a column, a list of names or a mapping")
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"labels: {shown(name)} is not text; put the name of a column in quotes")
        return {**tree, "labels": {name: {} for name in names}}
