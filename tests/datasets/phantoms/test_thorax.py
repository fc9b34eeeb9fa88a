from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from medmoco.datasets.phantoms.phantom import lesion_boxes, lesion_pixels
from medmoco.datasets.phantoms.solids import Solids
from medmoco.datasets.phantoms.thorax import (
    CORTICAL,
    FIELD,
    LUNG,
    SOFT,
    Pose,
    Thorax,
    Waves,
    build_thorax,
    draw_lesions,
    draw_person,
    project_lesion,
    project_thorax,
)

SIZE = 64
POSE = Pose((0.05, -0.04, 0.06), (0.6, -0.8), 0.5, "AP")


@pytest.fixture(scope="module")
def thorax() -> Thorax:
    """A patient with both diseases."""
    for number in count(1):
        person = draw_person(0, number)
        lesions = draw_lesions(person, 1)
        if person.interstitial and len(lesions) == 2:
            return build_thorax(person, POSE, lesions)
    raise AssertionError


def inside(solids: Solids, index: int, points: np.ndarray) -> np.ndarray:
    d = points - solids.centre[index]
    within = ((d @ solids.quadric[index]) * d).sum(axis=1) <= 1
    for normal, height in zip(solids.normals[index], solids.heights[index], strict=True):
        within &= d @ normal <= height
    return within


def value(waves: Waves, x: float, z: float) -> float:
    return float(np.sqrt(2 / len(waves.k)) * np.cos(waves.k @ (x, z) + waves.phase).sum())


def march(thorax: Thorax, x: float, z: float, step: float = 0.005) -> float:
    """Add up the attenuation coefficient along one ray in small steps: slow, and without any chord."""
    y = np.arange(-18, 18, step) + step / 2
    points = np.stack([np.full_like(y, x), y, np.full_like(y, z)], axis=1)

    def any_of(solids: Solids) -> np.ndarray:
        return np.any([inside(solids, index, points) for index in range(len(solids.centre))], axis=0)

    network = sum(np.exp(-((value(sheet, x, z) / 0.25) ** 2)) for sheet in thorax.septa)
    mu = SOFT * (1 + 0.015 * value(thorax.tissue, x, z)) * any_of(thorax.body)
    for side in range(2):
        air = inside(thorax.lungs, side, points) & ~any_of(thorax.organs)
        mu[air] += thorax.air - SOFT + thorax.interstitial * (SOFT - thorax.air) * network
        for lung, blobs in thorax.lesions:
            for index in range(len(blobs.centre)):
                mu[air & (lung == side) & inside(blobs, index, points)] += blobs.excess[index]
    beside = np.hypot(thorax.details.centre[:, 0] - x, thorax.details.centre[:, 2] - z)
    for index in np.flatnonzero(beside < 10):  # no detail is larger
        mu[inside(thorax.details, index, points)] += thorax.details.excess[index]
    return float(mu.sum() * step)


def test_project_thorax__agrees_with_ray_marching(thorax):
    image = project_thorax(thorax, SIZE)
    lesion = project_lesion(thorax, thorax.lesions[0], SIZE)
    peak = np.unravel_index(lesion.argmax(), lesion.shape)
    assert lesion[peak] > 0.1
    organs = [(round(31.5 - z * SIZE / FIELD), round(31.5 + x * SIZE / FIELD)) for x, _, z in thorax.organs.centre[3:]]
    for row, column in [peak, (20, 20), (25, 45), (36, 36), (45, 12), *organs]:
        x, z = ((column, SIZE - 1 - row) - np.full(2, (SIZE - 1) / 2)) * FIELD / SIZE
        assert image[row, column] == pytest.approx(march(thorax, x, z), abs=0.01)


def test_project_thorax__is_plausible(thorax):
    image = project_thorax(replace(thorax, lesions=()), SIZE)
    lung, spine, liver = np.median(image[18:26, 14:22]), image[45, 30:36].max(), np.median(image[56:60, 18:24])
    assert image.min() >= -1e-9
    assert lung < liver < spine < 9  # dark lungs, bright abdomen, brighter spine
    assert LUNG < SOFT < CORTICAL


def test_project_thorax__does_not_depend_on_the_grid(thorax):
    fine = project_thorax(thorax, 3 * SIZE)
    assert np.allclose(fine[1::3, 1::3], project_thorax(thorax, SIZE))  # every third ray is the same ray


def test_lesions__boxes_hold_what_they_add(thorax):
    boxes = lesion_boxes(lesion_pixels(thorax, SIZE))
    assert len(boxes) == 2
    total = np.zeros((SIZE, SIZE))
    for lesion, (left, top, right, bottom) in zip(thorax.lesions, boxes, strict=True):
        added = project_lesion(thorax, lesion, SIZE)
        total += added
        within = np.zeros_like(added, bool)
        within[top:bottom, left:right] = True
        assert added[~within].max() <= 0.02 < added.max()
        for edge in (added[top], added[bottom - 1], added[:, left], added[:, right - 1]):
            assert edge.max() > 0.02  # and the box is no larger than needed
    healthy = project_thorax(replace(thorax, lesions=()), SIZE)
    assert np.allclose(project_thorax(thorax, SIZE) - healthy, total)


def test_draws__are_functions_of_seed_and_number():
    one, same, other = draw_person(0, 7), draw_person(0, 7), draw_person(1, 7)
    assert (one.scale, one.girth) == (same.scale, same.girth)
    assert one.scale != other.scale
    assert np.array_equal(one.vessels.centre, same.vessels.centre)
