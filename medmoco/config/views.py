"""Settings of how views are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medmoco.config.base import Float, Fraction, Int, Positive, Settings, Tree

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
"""Source: moco_v1 and moco_v2, facebookresearch/moco `main_moco.py`; hue, saturation and grayscale, which do not affect
a single channel, are in `RGB_RECIPES`; moco_cxr, Sowrirajan et al. 2021 (arXiv:2010.05352), section 3.2."""

RGB_RECIPES: dict[str, Tree] = {
    "moco_v1": {"saturation": 0.4, "hue": 0.4, "grayscale_probability": 0.2},
    "moco_v2": {"saturation": 0.4, "hue": 0.1, "grayscale_probability": 0.2},
}
"""Values added to the recipes if `data.channels` is rgb. Source: facebookresearch/moco `main_moco.py`."""


VOLUME_RECIPES: dict[str, Tree] = {
    "ct": {
        "size": 96, "rotation": 15.0, "brightness": 0.1, "contrast": 0.25, "gamma": 0.2, "blur_probability": 0.2,
        "blur_sigma": [0.5, 1.0], "noise_probability": 0.3, "noise": 0.05, "low_resolution_probability": 0.25,
    },
    "mr": {
        "size": 96, "rotation": 15.0, "brightness": 0.25, "contrast": 0.25, "gamma": 0.4, "blur_probability": 0.2,
        "blur_sigma": [0.5, 1.0], "noise_probability": 0.3, "noise": 0.05, "low_resolution_probability": 0.25,
    },
}  # fmt: skip
"""Recipes for volumes. Source: the ranges of nnU-Net, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z), supplement
D; probabilities and the smaller changes for CT, whose units are absolute, are our choice."""

_IMAGES_ONLY = (
    "crop_scale", "crop_ratio", "saturation", "hue", "grayscale_probability", "cutout_probability", "cutout_scale",
)  # fmt: skip
_VOLUMES_ONLY = ("overlap", "zoom", "flip_axes", "rotation_axes", "low_resolution_probability")


class ViewSettings(Settings):
    """Augmentation: how a canvas becomes a view. `recipe` selects a preset, and every key set here overrides it."""

    recipe: Literal["xray", "moco_v1", "moco_v2", "moco_cxr", "ct", "mr"] = "xray"
    """Preset for the other keys of this group: ct or mr for volumes, the others for images."""

    size: Annotated[Int, Field(ge=16, le=2048)] = 224
    """Side of a view, in pixels or voxels. Source: He et al. 2020."""

    crop_scale: tuple[Fraction, Fraction] = (0.3, 1.0)
    """Range of the crop's area as a fraction of the image. Source: moderate crops keep the organ in view; MoCo v2
    starts at 0.2."""

    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio. Source: Szegedy et al. 2015 (arXiv:1409.4842)."""

    flip_probability: Fraction = 0.5
    """Probability of a horizontal flip. Source: MoCo-CXR; set it to 0 if laterality matters. For volumes, that of a
    flip along each of flip_axes."""

    rotation: Annotated[Float, Field(ge=0, le=180)] = 10.0
    """Largest rotation in degrees, in either direction. Source: MoCo-CXR. For volumes, about each of rotation_axes."""

    brightness: Annotated[Float, Field(ge=0, le=1)] = 0.3
    """Largest relative change of brightness. Source: MoCo v2 uses 0.4, which too often saturates the mediastinum."""

    contrast: Annotated[Float, Field(ge=0, le=1)] = 0.4
    """Largest relative change of contrast about the image's mean. Source: MoCo v2."""

    gamma: Annotated[Float, Field(ge=0, le=1)] = 0.2
    """Largest gamma correction, as |ln gamma|. Source: detectors differ in their tone curves."""

    saturation: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of saturation; rgb only. Source: MoCo v2 uses 0.4, set by its recipe."""

    hue: Annotated[Float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue as a fraction of the colour circle; rgb only. Source: MoCo v2 uses 0.1, set by its
    recipe."""

    jitter_probability: Fraction = 0.8
    """Probability that brightness, contrast, gamma, saturation and hue are changed. Source: MoCo v2."""

    grayscale_probability: Fraction = 0.0
    """Probability that a view is converted to gray; rgb only. Source: MoCo v2 uses 0.2, set by its recipe."""

    blur_probability: Fraction = 0.5
    """Probability of a Gaussian blur. Source: MoCo v2."""

    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of a 224-pixel view, with whose size it scales; for volumes, in
    voxels. Source: MoCo v2."""

    noise_probability: Fraction = 0.5
    """Probability of added Gaussian noise. Source: quantum noise depends on the dose."""

    noise: Annotated[Float, Field(ge=0, le=0.5)] = 0.03
    """Largest standard deviation of the noise as a fraction of white; in images, that of a 224-pixel view, which scales
    with `size`, since smaller pixels collect fewer quanta."""

    cutout_probability: Fraction = 0.0
    """Probability that a rectangle is filled with the image's mean (random erasing)."""

    cutout_scale: tuple[Fraction, Fraction] = (0.02, 0.2)
    """Range of the rectangle's area as a fraction of the view. Source: Zhong et al. 2017 (arXiv:1708.04896)."""

    overlap: Annotated[Float, Field(ge=0, lt=1)] = 0.25
    """Smallest share of a view's space that the other view of the same volume also shows; volumes only. Source: our
    choice; without any overlap, two crops of a large volume may have nothing in common."""

    zoom: tuple[Positive, Positive] = (0.8, 1.25)
    """Range of the extent of a view, relative to `size` voxels of the volume; volumes only. Source: nnU-Net scales by
    0.7 to 1.4."""

    flip_axes: tuple[Literal["left_right", "front_back", "head_foot"], ...] = ()
    """Axes along which volumes are flipped; none by default, since they are turned to the patient's axes, organs have
    sides, and fluid gathers at the back. Source: measured on CT phantoms, docs/results.md."""

    rotation_axes: Literal["slice", "all"] = "slice"
    """Axes about which volumes are rotated: the normal of the slices, or all three. Source: nnU-Net rotates about the
    normal alone where slices are thick."""

    low_resolution_probability: Fraction = 0.0
    """Probability that a volume is reduced to 0.5 to 1 of its resolution and enlarged again; volumes only.
    Source: nnU-Net."""

    mean: Fraction | tuple[Fraction, ...] = 0.5
    """Mean that is subtracted from pixels scaled to 0..1; one number, or one per channel. Source: MoCo-CXR uses
    0.502."""

    std: Positive | tuple[Positive, ...] = 0.25
    """Standard deviation by which pixels are then divided; one number, or one per channel. Source: close to that of
    windowed radiographs."""

    @model_validator(mode="after")
    def _ranges(self) -> ViewSettings:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "cutout_scale", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low:g}, {high:g}] must be [low, high] with low <= high")
        if self.crop_scale[0] <= 0:
            raise ValueError("crop_scale must be above 0")
        return self

    @model_validator(mode="after")
    def _applicable(self) -> ViewSettings:
        volumes = self.recipe in VOLUME_RECIPES
        fields = type(self).model_fields
        for name in _IMAGES_ONLY if volumes else _VOLUMES_ONLY:
            if getattr(self, name) != fields[name].default:
                kind = "images" if volumes else "volumes (recipes ct and mr)"
                raise ValueError(f"{name} applies to {kind}; with recipe {self.recipe} it has no effect, so drop it")
        return self
