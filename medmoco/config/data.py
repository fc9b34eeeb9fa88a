"""Settings of the way from a file to a view."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medmoco.config.base import Count, Float, Fraction, Int, Positive, Seconds, Settings, Tree
from medmoco.config.paths import PathSetting, PathText
from medmoco.config.yaml_text import shown


def _refuse_other_channels(value: Any) -> Any:
    if (isinstance(value, str) and value in ("gray", "rgb")) or (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256
    ):
        return value
    raise ValueError(f"{shown(value)} is neither gray, rgb nor a number of bands from 1 to 256")


Channels = Annotated[Literal["gray", "rgb"] | int, BeforeValidator(_refuse_other_channels)]


def channel_count(channels: Channels) -> int:
    """Return how many channels `data.channels` means."""
    return channels if isinstance(channels, int) else {"gray": 1, "rgb": 3}[channels]


class LabelPolicy(Settings):
    """What a label cell that is neither 0 nor 1 counts as: left out, 0 or 1."""

    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    """A cell of -1. Source: torchxrayvision leaves uncertain labels out; MoCo-CXR counts them as one."""

    missing: Literal["ignore", "zero", "one"] = "ignore"
    """A blank cell. Source: torchxrayvision leaves missing labels out; MoCo-CXR counts them as zero."""


class DataSettings(Settings):
    """Which images, and how a file becomes a canvas."""

    manifest: PathSetting
    """Folder with train.csv, val.csv and test.csv, or one CSV with a Split column."""

    root: PathText
    """Folder that the Path column is relative to; {split} in it becomes train, val or test."""

    labels: dict[str, LabelPolicy] = Field(default_factory=dict)
    """Label columns: a list of names, or a mapping from name to policy."""

    canvas_size: Annotated[Int, Field(ge=16, le=4096)] = 256
    """Longer side in pixels of the stored image that views are cut from. Source: 256 for views of 224."""

    channels: Channels = "gray"
    """Of a canvas: gray, to which colours are reduced; rgb; or the number of bands of NumPy arrays and TIFF files."""

    scale: Literal["linear", "log"] = "linear"
    """Of bands. log is for positive data over orders of magnitude. Source: Merz et al., galaxies (grantmerz/moco)."""

    band_ranges: Annotated[tuple[tuple[Float, Float], ...], Field(min_length=1)] | None = None
    """[low, high] of each band, or of all, that become black and white; values beyond are cut. Without it 8-bit bands
    keep their full range, and others are spread from the smallest to the largest value of each image."""

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

    decode_seconds: Seconds = 60.0
    """`check` and `pack` give up a file after this time. Source: measured, JPEG 2000 takes 0.2 s per million pixels."""

    decode_megabytes: Annotated[Int, Field(ge=64)] = 4096
    """`check` and `pack` give up a file above it. Source: measured, an image of `max_pixels` takes up to 1,600."""

    allow_symlinks: bool = False
    """Symbolic links may lead out of `root`; those within it, and a root that is itself a link, always work."""

    pack: PathText | None = None
    """Folder or URL (s3://, gs://, ...) of what `medmoco pack` made: canvases are read from it, not from the files.
    `medmoco pretrain` makes a folder that is not there yet."""

    pack_cache: PathSetting | None = None
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

    @property
    def channel_count(self) -> int:
        """How many channels a canvas has."""
        return channel_count(self.channels)

    @model_validator(mode="after")
    def _bands(self) -> DataSettings:
        if isinstance(self.channels, str):
            if self.scale != "linear" or self.band_ranges:
                raise ValueError("scale and band_ranges are for bands: set channels to their number, or leave them out")
            return self
        if self.window != "voi":
            raise ValueError("window is for gray and rgb; bands have band_ranges")
        ranges = self.band_ranges or ()
        if len(ranges) not in (0, 1, self.channels):
            raise ValueError(f"band_ranges has {len(ranges)} pairs for {self.channels} channels; give one, or one each")
        for low, high in ranges:
            if low >= high or (self.scale == "log" and low <= 0):
                needs = "0 < low < high" if self.scale == "log" else "low < high"
                raise ValueError(f"band_ranges [{low:g}, {high:g}] is not [low, high] with {needs}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("labels"), list):
            for name in tree["labels"]:
                if not isinstance(name, str):
                    raise ValueError(f"labels: {shown(name)} is not the name of a column; put it in quotes if it is")
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
"""Source: moco_v1 and moco_v2, facebookresearch/moco `main_moco.py`; hue, saturation and grayscale, which do nothing to
one channel, are in `RGB_RECIPES`; moco_cxr, Sowrirajan et al. 2021 (arXiv:2010.05352), section 3.2."""

RGB_RECIPES: dict[str, Tree] = {
    "moco_v1": {"saturation": 0.4, "hue": 0.4, "grayscale_probability": 0.2},
    "moco_v2": {"saturation": 0.4, "hue": 0.1, "grayscale_probability": 0.2},
}
"""What recipes have besides where `data.channels` is rgb. Source: facebookresearch/moco `main_moco.py`."""


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

    saturation: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of saturation; of rgb alone. Source: MoCo v2 has 0.4, by its recipe."""

    hue: Annotated[Float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the hue as a share of the circle; of rgb alone. Source: MoCo v2 has 0.1, by its recipe."""

    jitter_probability: Fraction = 0.8
    """Chance that brightness, contrast, gamma, saturation and hue change at all. Source: MoCo v2."""

    grayscale_probability: Fraction = 0.0
    """Chance that a view loses its colours; of rgb alone. Source: MoCo v2 has 0.2, by its recipe."""

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

    mean: Fraction | tuple[Fraction, ...] = 0.5
    """Subtracted from pixels in 0..1 on the training device; a number, or one for each channel. Source: MoCo-CXR has
    0.502."""

    std: Positive | tuple[Positive, ...] = 0.25
    """Divides after the mean; a number, or one for each channel. Source: close to the spread of windowed films."""

    @model_validator(mode="after")
    def _ranges(self) -> ViewSettings:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "cutout_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low:g}, {high:g}] is not [low, high]")
        if self.crop_scale[0] <= 0:
            raise ValueError("crop_scale must be above 0")
        return self
