"""Merge the boxes of several readers: overlapping boxes belong to one finding."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CONSENSUS = "consensus"  # a reader with this name represents all
_SAME = 0.5  # intersection over union at which two boxes belong to one finding

Floats = NDArray[np.float64]


def agreed(boxes: pd.DataFrame, least: int) -> tuple[pd.DataFrame, list[str]]:
    """Merge the boxes of several readers, and keep those on which enough readers agree.

    Overlapping boxes of one image and label by different readers are averaged. The result does not depend on the order
    of the rows.

    Args:
        boxes: Rows with image, label, reader, at, x_min, y_min, x_max and y_max, sorted by image and at.
        least: Readers who must agree on a box; the reader `CONSENSUS` alone is sufficient.

    Returns:
        The boxes and a note about them; unchanged if there is at most one reader.
    """
    if boxes["reader"].nunique() < 2:
        return boxes, []
    names = ["x_min", "y_min", "x_max", "y_max"]
    ordered = boxes.sort_values(["image", "label", *names, "reader"])
    corners, readers = ordered[names].to_numpy(float), ordered["reader"].to_numpy(object)
    groups = ordered.groupby(["image", "label"]).ngroup().to_numpy()
    clusters = [
        members[cluster]
        for members in np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(groups)) + 1)
        for cluster in _clusters(corners[members], readers[members].tolist())
    ]
    kept = [cluster for cluster in clusters if len(cluster) >= least or CONSENSUS in readers[cluster]]
    result = ordered.iloc[[cluster[0] for cluster in kept]].copy()
    result[names] = np.array([corners[cluster].mean(0) for cluster in kept]).reshape(-1, 4)
    note = f"{len(boxes)} boxes by several readers were merged into {len(clusters)} findings"
    if least > 1:
        note += f", of which {len(kept)} have boxes by {least} readers or by consensus"
    return result.sort_values(["image", "at"]), [note]


def _clusters(corners: Floats, readers: list[str]) -> list[list[int]]:
    """Return the boxes of each finding: a box joins the most overlapping finding without a box by its reader."""
    clusters: list[list[int]] = []
    for number, reader in enumerate(readers):
        overlaps = [
            0.0 if reader in {readers[one] for one in cluster} else overlap(corners[number], corners[cluster].mean(0))
            for cluster in clusters
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= _SAME:
            clusters[best].append(number)
        else:
            clusters.append([number])
    return clusters


def overlap(one: Floats, other: Floats) -> float:
    """Return the intersection over union of two boxes, (4,) each."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return shared / (areas - shared)
