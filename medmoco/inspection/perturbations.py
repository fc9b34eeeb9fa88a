"""Perturbed copies of images, to measure to which changes an encoder is invariant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import ViewSettings
from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.augment.views import Pixels, draw, render, unchanged
from medmoco.data.image_io.images import Canvas
from medmoco.errors import SettingsError

AMOUNTS: dict[str, float | None] = {"flip": None, "rotate": 10.0, "crop": 0.7, "intensity": 0.2, "view": None}
"""Perturbations and their default amounts: degrees, fraction of the area kept in the centre, relative increase in
brightness. Source: rotation and intensity are within the range of the views of recipe xray."""


class Perturbation(NamedTuple):
    """A kind of perturbation and its amount."""

    kind: str
    amount: float | None

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind}:{self.amount:g}"


def parse_perturbation(text: str) -> Perturbation:
    """Return the perturbation "flip" or "view", or "rotate", "crop" or "intensity" with an optional ":AMOUNT".

    Raises:
        SettingsError: the text is not one of these.
    """
    kind, colon, number = text.partition(":")
    if kind not in AMOUNTS:
        raise SettingsError(f"--perturbation {text}: choose from {', '.join(AMOUNTS)}")
    amount = AMOUNTS[kind]
    if colon:
        try:
            amount = float(number) if amount is not None else None
        except ValueError:
            amount = None
        limits = {"rotate": (-180.0, 180.0), "crop": (0.01, 0.99), "intensity": (-0.9, 10.0)}.get(kind, (0.0, 0.0))
        if amount is None or not limits[0] <= amount <= limits[1] or amount == 0:
            what = (
                f"takes a number between {limits[0]:g} and {limits[1]:g}, not 0" if any(limits) else "takes no number"
            )
            raise SettingsError(f"--perturbation {text}: {kind} {what}")
    return Perturbation(kind, amount)


def perturb(
    canvases: list[Canvas],
    samples: NDArray[np.int64],
    *,
    perturbations: Sequence[Perturbation],
    views: ViewSettings,
    rows: NDArray[np.int64],
    seed: int,
) -> Pixels:
    """Return V perturbed copies of each of B images.

    Args:
        canvases: The images.
        samples: (B,) positions in `rows`.
        perturbations: The V perturbations.
        views: Augmentation settings for the perturbation "view", and the size.
        rows: (N,) row numbers in the manifest, so that a row's view does not depend on the other rows.
        seed: Seed of the views.

    Returns:
        (B, V * C, S, S) of the canvases' dtype.
    """
    parameters = [
        draw(views, canvases, seed=seed, epoch=0, samples=rows[samples], view=0)
        if perturbation.kind == "view"
        else _changed(unchanged(canvases), perturbation)
        for perturbation in perturbations
    ]
    return np.concatenate(render(views, canvases, parameters), axis=1)


def _changed(whole: ViewParameters, perturbation: Perturbation) -> ViewParameters:
    amount = perturbation.amount or 0.0
    if perturbation.kind == "flip":
        return replace(whole, mirrored=~whole.mirrored)
    if perturbation.kind == "rotate":
        return replace(whole, angle=np.full_like(whole.angle, np.deg2rad(amount)))
    if perturbation.kind == "crop":
        return replace(whole, width=whole.width * amount**0.5, height=whole.height * amount**0.5)
    return replace(whole, brightness=whole.brightness * (1 + amount))
