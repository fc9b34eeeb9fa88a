"""An image's twins: the same image, changed in one way that an encoder may or may not care about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import ViewSettings
from medmoco.data.augment.views import Pixels, ViewParameters, draw, render, unchanged
from medmoco.data.image_io.images import Canvas
from medmoco.errors import SettingsError

AMOUNTS: dict[str, float | None] = {"flip": None, "rotate": 10.0, "crop": 0.7, "intensity": 0.2, "view": None}
"""Twins, and how much of the change there is unless said otherwise: degrees, share of the area kept from the middle,
share by which the image is brighter. Source: rotation and intensity lie within the views of recipe xray."""


class Twin(NamedTuple):
    """A change that an encoder may or may not care about."""

    kind: str
    amount: float | None

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind}:{self.amount:g}"


def parse_twin(text: str) -> Twin:
    """Read "flip", "view", or "rotate", "crop" and "intensity" with ":AMOUNT" where it is not the usual.

    Raises:
        SettingsError: it is none of these.
    """
    kind, colon, number = text.partition(":")
    if kind not in AMOUNTS:
        raise SettingsError(f"--twin {text}: there is {', '.join(AMOUNTS)}")
    amount = AMOUNTS[kind]
    if colon:
        try:
            amount = float(number) if amount is not None else None
        except ValueError:
            amount = None
        limits = {"rotate": (-180.0, 180.0), "crop": (0.01, 0.99), "intensity": (-0.9, 10.0)}.get(kind, (0.0, 0.0))
        if amount is None or not limits[0] <= amount <= limits[1] or amount == 0:
            what = f"a number between {limits[0]:g} and {limits[1]:g}, not 0" if any(limits) else "no number"
            raise SettingsError(f"--twin {text}: {kind} takes {what}")
    return Twin(kind, amount)


def make_twins(
    canvases: list[Canvas],
    samples: NDArray[np.int64],
    *,
    twins: Sequence[Twin],
    views: ViewSettings,
    rows: NDArray[np.int64],
    seed: int,
) -> Pixels:
    """Change B images in V ways.

    Args:
        canvases: The images.
        samples: (B,) positions in `rows`.
        twins: The V ways.
        views: The recipe of the twin "view", and the size.
        rows: (N,) of the manifest: a row's view is the same whatever else is ranked.
        seed: Of the views.

    Returns:
        (B, V * C, S, S) of the canvases' dtype.
    """
    drawn = [
        draw(views, canvases, seed=seed, epoch=0, samples=rows[samples], view=0)
        if twin.kind == "view"
        else _changed(unchanged(canvases), twin)
        for twin in twins
    ]
    return np.concatenate(render(views, canvases, drawn), axis=1)


def _changed(whole: ViewParameters, twin: Twin) -> ViewParameters:
    amount = twin.amount or 0.0
    if twin.kind == "flip":
        return replace(whole, mirrored=~whole.mirrored)
    if twin.kind == "rotate":
        return replace(whole, angle=np.full_like(whole.angle, np.deg2rad(amount)))
    if twin.kind == "crop":
        return replace(whole, width=whole.width * amount**0.5, height=whole.height * amount**0.5)
    return replace(whole, brightness=whole.brightness * (1 + amount))
