"""The contract alone, in NumPy and SciPy, must be enough to prepare a volume."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medmoco.exporting.volume_contract import packages_of_volumes, steps_of_volumes, steps_read
from medmoco.models.networks.volumes import NETWORKS
from tests.helpers.volume_subjects import CT, MR, head_like, prepared

Values = NDArray[np.float64]


# ---- a stranger's code: it knows the JSON, and nothing of medmoco ----


def _linear(side: int, target: int) -> Values:
    weights = np.zeros((target, side))
    for i, position in enumerate((np.arange(target) + 0.5) * side / target - 0.5):
        low = int(np.floor(position))
        for index, share in ((low, low + 1 - position), (low + 1, position - low)):
            weights[i, min(max(index, 0), side - 1)] += share
    return weights


def _area(side: int, target: int) -> Values:
    edges = np.arange(target + 1) * side / target
    overlap = np.minimum(edges[1:, None], np.arange(side) + 1) - np.maximum(edges[:-1, None], np.arange(side))
    shares: Values = np.clip(overlap, 0, None) * target / side
    return shares


def _along(values: Values, axis: int, weights: Values) -> Values:
    return np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)


def _body(coarse: Values, step: dict[str, Any], *, in_hu: bool) -> NDArray[np.bool_]:
    threshold = step["threshold_hu"]
    if not in_hu:
        low = np.percentile(coarse, 1)
        threshold = low + step["share"] * (np.percentile(coarse[coarse > low], 99) - low)
    labels, count = ndimage.label(coarse > threshold)
    sizes = ndimage.sum_labels(np.ones(coarse.shape), labels, range(1, count + 1))
    kept = [number + 1 for number, size in enumerate(sizes) if size >= step["part"] * max(sizes)]
    mask: NDArray[np.bool_] = ndimage.binary_fill_holes(np.isin(labels, kept))
    return mask


def _canvas(values: Values, spacing: tuple[float, ...], steps: dict[str, Any]) -> Values:
    body, gray = steps["body"], steps["grayscale"]
    n = [int(np.ceil(side / body["coarse"])) for side in values.shape]
    coarse = values[:: n[0], :: n[1], :: n[2]]
    mask = _body(coarse, body, in_hu=gray["window"] != "percentiles")
    assert mask.sum() >= body["smallest"] * mask.size
    for axis in range(3):
        found = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        first, last = max(0, found[0] - body["margin"]) * n[axis], (found[-1] + body["margin"] + 1) * n[axis]
        values = values.take(range(first, min(last, values.shape[axis])), axis)
    if gray["window"] == "percentiles":
        low, high = np.percentile(coarse[mask], gray["percentiles"])
    else:
        centre, width = gray["window"]
        low, high = centre - width / 2, centre + width / 2
    if steps["resample"]["spacing"]:
        pairs = zip(values.shape, spacing, steps["resample"]["spacing"], strict=True)
        new = [max(1, round(side * at / to)) for side, at, to in pairs]
        for axis in np.argsort(np.array(new) / values.shape, kind="stable"):
            side, target = values.shape[axis], new[axis]
            values = _along(values, axis, (_area if target < side else _linear)(side, target))
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * steps["canvas"]["white"])


def _shown(canvas: Values, steps: dict[str, Any]) -> Values:
    if "windows" in steps:
        size, overlap = steps["windows"]["size"][0], steps["windows"]["overlap"]
        starts = []
        for side in canvas.shape:
            count = int(np.ceil((side - size) / (size * (1 - overlap)))) + 1
            starts.append(np.rint(np.linspace(0, side - size, count)) if side > size else [(side - size) // 2])
        black = np.pad(canvas, size)
        places = [[int(start) + size for start in axis] for axis in starts]
        made = [
            black[x : x + size, y : y + size, z : z + size] for x in places[0] for y in places[1] for z in places[2]
        ]
        return np.stack(made)[:, None]
    size = steps["resize"]["size"][0]
    for axis, side in enumerate(canvas.shape):
        block = 2 ** max(0, int(np.floor(np.log2(side / size))))
        rest = side % block
        canvas = canvas.take(range(rest // 2, rest // 2 + side - rest), axis)
        canvas = np.moveaxis(np.stack(np.split(np.moveaxis(canvas, axis, 0), len(range(0, side - rest, block)))), 1, -1)
        canvas = np.moveaxis(canvas.mean(-1), 0, axis)
    canvas = np.rint(canvas)
    canvas = np.rint(_along(_along(canvas, 1, _linear(canvas.shape[1], size)), 2, _linear(canvas.shape[2], size)))
    return np.rint(_along(canvas, 0, _linear(canvas.shape[0], size)))[None]


@pytest.mark.parametrize("volumes", ["sliding", "resized"])
@pytest.mark.parametrize("settings", [MR, CT, CT | {"bit_depth": 8, "spacing": (1.0, 1.0, 1.0)}], ids=["mr", "ct", "8"])
@pytest.mark.parametrize("shape", [(40, 50, 30), (150, 70, 41)])
def test_steps_of_volumes__are_enough_for_a_stranger(
    shape: tuple[int, int, int], settings: dict[str, Any], volumes: str
) -> None:
    found = prepared(size=24, volumes=volumes, **settings)
    steps = json.loads(json.dumps(steps_of_volumes(found)))
    values = head_like(shape)
    if settings["window"] != "percentiles":
        values = values - 1000 + 700 * (values > 100)
    levels = _shown(_canvas(values.astype(np.float64), found.spacing or (1.0, 1.0, 1.0), steps), steps)
    views = found.prepare(values)  # an array, which has the spacing of the settings
    ours = (views * found.stds[0] + found.means[0]) * steps["canvas"]["white"]
    assert ours.shape == levels.shape
    difference = np.abs(ours - levels)
    assert difference.max() <= (2.01 if found.bit_depth == 8 else 300)
    assert difference.mean() < 0.1 * (1 if found.bit_depth == 8 else 100)
    assert np.ptp(levels) > 0.9 * steps["canvas"]["white"]


def test_steps_of_volumes__resampling_of_files(tmp_path: Any) -> None:
    """Files have a spacing of their own, arrays do not."""
    nibabel = pytest.importorskip("nibabel")
    found = prepared(size=24, volumes="sliding")
    values, spacing = head_like((40, 90, 25)), (2.0, 0.7, 3.1)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1])), tmp_path / "a.nii")
    steps = json.loads(json.dumps(steps_of_volumes(found)))
    levels = _shown(_canvas(values.astype(np.float64), spacing, steps), steps)
    ours = (found.prepare(tmp_path / "a.nii") * 0.2 + 0.3) * 255
    assert ours.shape == levels.shape
    assert np.abs(ours - levels).max() < 1.01
    assert np.abs(ours - levels).mean() < 0.02


def test_steps_of_volumes__say_what_applies() -> None:
    sliding, resized = (steps_of_volumes(prepared(volumes=volumes)) for volumes in ("sliding", "resized"))
    assert list(sliding) == ["orientation", "body", "resample", "grayscale", "canvas", "windows"]
    assert list(resized)[-1] == "resize"
    assert sliding["grayscale"]["percentiles"] == [0.5, 99.5]
    ct = steps_of_volumes(prepared(**CT))
    assert ct["resample"] == {"spacing": None, "unit": "mm", "rule": "none: voxels keep the distances of the file"}
    assert ct["grayscale"]["window"] == (40.0, 400.0)
    assert "percentiles" not in ct["grayscale"]


def test_steps_read__are_those_that_prepare_reads() -> None:
    assert steps_read(prepared()) == {
        "resample": {"spacing": [1.5, 1.0, 2.0]},
        "grayscale": {"window": "percentiles"},
        "canvas": {"bit_depth": 8, "white": 255},
        "windows": {"size": [32, 32, 32]},
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_packages_of_volumes__are_installed(name: str) -> None:
    packages = packages_of_volumes(name)
    assert all(packages.values())
    assert ("dynamic-network-architectures" in packages) == name.startswith("nnunet/")
    assert ("einops" in packages) == ("swin" in name)
