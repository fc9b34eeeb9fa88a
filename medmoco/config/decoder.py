"""Settings of the decoder beside the contrastive loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medmoco.config.base import Count, Float, Fraction, Settings


class DecoderSettings(Settings):
    """A decoder that reconstructs a query's view from its embedding.

    The loss is contrast x InfoNCE + weight x mean squared error, of normalised pixels.

    Source: grantmerz/moco, for galaxies.
    """

    weight: Annotated[Float, Field(ge=0)] = 0.0
    """Beta, of the squared error; 0 trains no decoder. Source: grantmerz/moco has 50 in the names of its runs."""

    contrast: Annotated[Float, Field(ge=0)] = 1.0
    """Alpha, of the InfoNCE; 0 trains an autoencoder."""

    channels: Count = 256
    """Of the decoder's coarsest layer; each that doubles the side has half of them, 16 at the least.
    Source: a judgement; grantmerz/moco's has 1,024 and takes longer than its encoder."""

    empty: Literal["none", "threshold", "outside", "mask"] = "none"
    """Pixels of empty space, which count less: none; those no brighter than `threshold` on the canvas; those that a
    rotated view shows from beyond the image's edges; those that are black in the image that `mask` names."""

    threshold: Fraction = 0.0
    """Share of white. Source: grantmerz/moco takes pixels of 0 or less."""

    mask: str | None = None
    """Manifest column of the Paths of mask images, each as large as its image; white counts, black is empty."""

    empty_weight: Fraction = 0.0
    """Of a pixel of empty space. Source: grantmerz/moco has 0, or 1e-6."""

    @model_validator(mode="after")
    def _fit_together(self) -> DecoderSettings:
        if not self.weight and not self.contrast:
            raise ValueError("weight and contrast are both 0: nothing would be trained")
        if self.empty != "none" and not self.weight:
            raise ValueError(f"empty {self.empty} weighs what the decoder reconstructs; set weight above 0")
        if (self.empty == "mask") != (self.mask is not None):
            raise ValueError("empty mask and a mask column need each other: set both, or neither")
        return self
