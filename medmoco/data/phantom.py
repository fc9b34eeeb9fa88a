"""Synthetic chest phantoms: an analytic thorax, projected, so that the demo and the tests need no download.

A thorax is a set of ellipsoids and tubes with attenuation coefficients. Parallel rays run through it from back to
front, the length of every ray in every solid is known in closed form (solids.py), and Beer-Lambert gives the photons
that reach the detector. The label Opacity is a patchy consolidation inside one lung, Interstitial a fine network in
both lungs.

These are drawings with physics in them. They carry no clinical evidence: a score on them says that the code works,
and nothing about patients. What is simplified: one photon energy, parallel rays, scatter as one broad blur.

Lengths are in cm, attenuation coefficients in 1/cm. x points to the right of the image (the patient's left), y from
back to front along the rays, z up; the origin is in the middle of the chest and of the image.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from medmoco.data.solids import (
    Array,
    Solids,
    ellipsoid,
    free_length,
    holds,
    intervals,
    join,
    moved,
    pick,
    segments,
    tube,
    union_length,
)
from medmoco.errors import SettingsError

# Linear coefficients at 60 keV, about the mean energy of a 120 kV chest beam: mass coefficient (cm2/g) x density
# (g/cm3). Source: NISTIR 5632 table 4 and ICRU Report 44, whose inflated lung has 0.26 g/cm3.
SOFT = 0.2048 * 1.06
LUNG = 0.2053 * 0.26
CORTICAL = 0.3148 * 1.92
SPONGY = 0.3148 * 0.40 + 0.2048 * 0.80  # our mixture of bone and marrow, 1.2 g/cm3

FIELD = 38.0  # side of the detector
PHOTONS = 4e5  # per pixel without a patient: few, so that quantum noise shows
SCATTER = 0.25  # scattered photons per primary one, averaged over the detector
FULL_SCALE = 8.0  # attenuation that 12 bits reach
BOX_FLOOR = 0.02  # a box holds what an opacity adds beyond this attenuation
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
FORMATS = {"dicom": ("MONOCHROME1", "MONOCHROME2"), "png": ("png16", "png8")}
COLUMNS = ["Path", "PatientID", "StudyID", "ViewPosition", "Sex", "Age", "Opacity", "Interstitial"]
BOX_COLUMNS = ["Split", "Path", "x", "y", "width", "height", "Label"]

Image = npt.NDArray[np.uint16]
Lesion = tuple[int, Solids]  # lung (0 at the left of the image) and the ellipsoids in it


class Waves(NamedTuple):
    """A random field over (x, z): the sum of M plane waves."""

    k: Array  # (M, 2) rad/cm
    phase: Array  # (M,)


@dataclass(frozen=True)
class Person:
    """What stays with a patient; `seed` and `number` determine every other draw."""

    seed: int
    number: int
    sex: Literal["F", "M"]
    age: int
    scale: float
    girth: float
    heart: float
    density: float
    interstitial: float


@dataclass(frozen=True)
class Pose:
    """What changes from image to image: three angles in rad, a shift and the height of the diaphragm in cm."""

    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    breath: float = 0.0
    view: Literal["PA", "AP"] = "PA"


@dataclass(frozen=True)
class Thorax:
    """What the rays pass: overlapping parts of the body count once, as do organs, which displace air in the lungs."""

    body: Solids
    lungs: Solids
    organs: Solids
    details: tuple[Solids, ...]
    lesions: tuple[Lesion, ...]
    air: float
    septa: tuple[Waves, ...]
    interstitial: float
    tissue: Waves


# -------------------------------------------------------------------------------------------------- anatomy


def draw_person(seed: int, number: int) -> Person:
    rng = np.random.default_rng([seed, number, 0])
    female = rng.random() < 0.5
    return Person(
        seed,
        number,
        "F" if female else "M",
        int(rng.integers(20, 90)),
        scale=(0.94 if female else 1.02) * rng.normal(1, 0.04),
        girth=float(np.clip(rng.normal(1.04, 0.08), 0.92, 1.3)),
        heart=float(np.clip(rng.normal(1, 0.08), 0.8, 1.25)),
        density=LUNG * float(np.clip(rng.normal(1, 0.15), 0.7, 1.5)),
        interstitial=float(rng.uniform(0.10, 0.25)) if rng.random() < 0.4 else 0.0,
    )


def draw_pose(person: Person, study: int, image: int) -> Pose:
    rng = np.random.default_rng([person.seed, person.number, 1, study, image])
    ap = rng.random() < 0.25
    turn = rng.normal(0, (0.04, 0.03, 0.05))
    shift = rng.normal(0, 0.7, 2)
    breath = rng.normal(1.3 if ap else 0.0, 0.7)
    return Pose((turn[0], turn[1], turn[2]), (shift[0], shift[1]), float(breath), "AP" if ap else "PA")


def draw_lesions(person: Person, study: int) -> tuple[Lesion, ...]:
    """Return the opacities of a study: none, one or two clusters of ellipsoids, well inside the air of a lung."""
    rng = np.random.default_rng([person.seed, person.number, 2, study])
    if rng.random() > 0.45:
        return ()
    thorax = build_thorax(person, Pose())
    return tuple(_draw_lesion(thorax, rng) for _ in range(rng.choice([1, 1, 2])))


def _draw_lesion(thorax: Thorax, rng: np.random.Generator) -> Lesion:
    margin = 1.2 * np.vstack([np.eye(3), -np.eye(3)])
    while True:
        side = int(rng.integers(2))
        centre = thorax.lungs.centre[0] + rng.uniform(-1, 1, 3) * (13, 8, 14)
        probes = centre + margin
        if holds(thorax.lungs, probes)[:, side].all() and not holds(thorax.organs, probes).any():
            break
    size, count = rng.uniform(1.0, 2.4), int(rng.integers(5, 10))
    filled = rng.uniform(0.10, 0.45) * (SOFT - thorax.air)
    blobs = [
        ellipsoid(centre + size * rng.normal(0, 0.55, 3), size * rng.uniform(0.5, 1.1, 3), excess=filled / 2)
        for _ in range(count)
    ]
    return side, join(*blobs)


def build_thorax(person: Person, pose: Pose, lesions: tuple[Lesion, ...] = ()) -> Thorax:
    """Return the anatomy of a patient in the pose of one image."""
    rng = np.random.default_rng([person.seed, person.number, 3])
    heart = person.heart * (1.12 if pose.view == "AP" else 1.0)
    lungs, organs = _lungs(), _organs(heart, pose.breath)
    details = (*_bones(rng), _airways(rng), _vessels(rng, lungs, organs))
    septa = tuple(_waves(rng, 48, 0.9, 1.8) for _ in range(3))
    tissue = _waves(rng, 24, 2.0, 9.0)
    rotation = _rotation(*pose.turn)
    place = partial(
        moved, scale=person.scale, rotation=rotation, shift=np.array([pose.shift[0], 0.0, pose.shift[1]])
    )
    flow = partial(_moved_waves, scale=person.scale, rotation=rotation[::2, ::2], shift=np.array(pose.shift))
    return Thorax(
        place(_body(person)),
        place(lungs),
        place(organs),
        tuple(place(family) for family in details),
        tuple((side, place(lesion)) for side, lesion in lesions),
        person.density * (1 + 0.06 * pose.breath),
        tuple(flow(waves) for waves in septa) if person.interstitial else (),
        person.interstitial,
        flow(tissue),
    )


def _body(person: Person) -> Solids:
    g = person.girth
    parts = [
        ellipsoid((0, 0, -8), (16.6 * g, 11.2 * g, 26)),
        ellipsoid((0, -1, 21), (6.5, 6.2, 11)),
        *(ellipsoid((side * 12.5, -1.5, 12), (8.5 * g, 5.5 * g, 5.5)) for side in (-1, 1)),
    ]
    if person.sex == "F":
        parts += [ellipsoid((side * 7.5, 9.5 * g, -4), (5.5, 4.5 * g, 5.2)) for side in (-1, 1)]
    return join(*parts)


def _lungs() -> Solids:
    """Return the two halves of the rib cage beside the mediastinum; the diaphragm and the heart come off later."""
    floor = ((0.0, 0.0, -1.0), 11.0)
    cage = partial(ellipsoid, (0.0, 0.0, -3.0), (13.2, 9.2, 17.0))
    return join(cage(planes=[((1.0, 0.0, 0.0), -1.9), floor]), cage(planes=[((-1.0, 0.0, 0.0), -2.2), floor]))


def _organs(heart: float, breath: float) -> Solids:
    return join(
        ellipsoid((2.3, 3, -5.3), (6.3 * heart, 4.6 * heart, 4.7 * heart), turn=_rotation(0, 0.6, 0)),
        ellipsoid((-6.5, 0, -15 + breath), (6.1, 10, 8.5)),
        ellipsoid((6.5, 0, -16.2 + breath), (6.1, 10, 8.5)),
        ellipsoid((2.5, -1, 6.2), (1.7, 2.4, 1.7)),  # aortic arch
        ellipsoid((2.4, 1, 2.0), (2.1, 1.8, 2.4)),  # pulmonary trunk
        ellipsoid((-1.2, 1, 4.5), (1.7, 1.7, 6.5)),  # superior vena cava, ascending aorta
    )


def _bones(rng: np.random.Generator) -> tuple[Solids, ...]:
    spacing, slope = rng.normal(2.2, 0.06), rng.normal(1, 0.06)
    ribs = [
        _bone(partial(_rib, 13.3 - spacing * k, slope * (4.5 + 0.75 * k), 2.6 - 0.05 * max(k - 5, 0), side, 0.5))
        for k in range(10)
        for side in (-1, 1)
    ]
    clavicle = np.array([[1.6, 5.5, 8.6], [4, 6.2, 9.3], [7, 5.6, 10.3], [10, 3.4, 11.4], [13, 1.2, 12.2], [16, 0, 12.3]])
    clavicles = [
        _bone(lambda inset, excess, s=side: tube(_smooth(clavicle) * (s, 1, 1), 0.6 - inset, excess)) for side in (-1, 1)
    ]
    vertebrae = [_vertebra(17.5 - 2.45 * k, 0.8 + 0.025 * k) for k in range(16)]
    plates = []
    for side in (-1, 1):
        turn = _rotation(0.1, side * 0.22, side * 0.45)
        plates.append(ellipsoid((side * 13.4, -8.2, 4.5), (3.4, 0.28, 6.5), excess=0.5 * (CORTICAL - SOFT), turn=turn))
        head = partial(ellipsoid, (side * 17.3, -1.5, 11.8))
        plates.append(head((2.3, 2.3, 2.3), excess=SPONGY - SOFT))
    sternum = ellipsoid((0, 8.4, 2.5), (2.0, 0.6, 8.5), excess=SPONGY - SOFT)
    return join(*ribs, *clavicles), join(*vertebrae), join(*plates, sternum)


def _bone(outline: Callable[[float, float], Solids], shell: float = 0.13) -> Solids:
    """Return a cortical shell around spongy bone; `outline` takes how much smaller to draw, and the excess."""
    return join(outline(0.0, CORTICAL - SOFT), outline(shell, SPONGY - CORTICAL))


def _rib(top: float, drop: float, end: float, side: int, radius: float, inset: float, excess: float) -> Solids:
    """Return a rib that winds around the cage from the spine, falling by `drop` cm on a full half turn."""
    angle = np.linspace(0.2, end, 18)
    z = top - drop * (1 - np.cos(angle)) / 2
    wide = np.sqrt(np.maximum(1 - np.square((z + 3) / np.where(z > -3, 17.3, 34)), 0.03))
    points = np.stack([side * 13.5 * wide * np.sin(angle), -9.5 * wide * np.cos(angle), z], axis=1)
    return tube(points, radius - inset, excess)


def _vertebra(z: float, size: float) -> Solids:
    def body(inset: float, excess: float) -> Solids:
        ends = [((0.0, 0.0, sign), 0.98 - inset) for sign in (-1.0, 1.0)]
        axes = np.array([1.75 * size, 1.4 * size, 2.6]) - inset
        return ellipsoid((0, -5.6, z), axes.tolist(), excess=excess, planes=ends)

    dense = CORTICAL - SOFT
    pedicles = [ellipsoid((x * size, -7.2, z + 0.3), (0.33, 0.9, 0.5), excess=dense) for x in (-1.2, 1.2)]
    return join(_bone(body), *pedicles, ellipsoid((0, -9, z - 0.6), (0.28, 1.2, 0.75), excess=dense))


def _airways(rng: np.random.Generator) -> Solids:
    trachea = np.array([[0, 2, 21], [0, 1, 16], [0.1, 0.2, 11], [0.2, -0.3, 7.5], [0.2, -0.5, 5.2]])
    left, right = np.array([[0.2, -0.5, 5.2], [2.4, -0.6, 3.4]]), np.array([[0.2, -0.5, 5.2], [-1.9, -0.6, 3.3]])
    tubes = [tube(_smooth(trachea), 0.85, -SOFT), tube(left, 0.55, -SOFT), tube(right, 0.62, -SOFT)]
    x, z, size = rng.uniform(4, 7), rng.uniform(-14.5, -12.5), rng.uniform(0.6, 1.5)
    return join(*tubes, ellipsoid((x, 1, z), (1.5 * size, 1.2 * size, 0.8 * size), excess=-SOFT))  # stomach bubble


def _vessels(rng: np.random.Generator, lungs: Solids, organs: Solids) -> Solids:
    """Return two trees that fork from the hila; what would leave the air is pruned."""
    starts, ends, radii = [], [], []
    for side in (-1, 1):
        points = np.array([side * 2.6, -0.3, 1.0]) + rng.normal(0, (0.3, 0.6, 1.2), (14, 3))
        fan = np.linspace(-1.5, 1.4, len(points))
        course = np.stack([side * np.cos(fan), rng.normal(0, 0.45, len(points)), np.sin(fan) * 1.2], axis=1)
        for level in range(7):
            course = course + rng.normal(0, 0.3, course.shape)
            course /= np.linalg.norm(course, axis=1, keepdims=True)
            tips = points + course * (2.1 * 0.9**level * rng.uniform(0.7, 1.2, (len(points), 1)))
            starts.append(points)
            ends.append(tips)
            radii.append(np.full(len(points), 0.40 * 0.76**level))
            fork = rng.random(len(tips)) < 0.6
            points, course = np.concatenate([tips, tips[fork]]), np.concatenate([course, course[fork]])
    tree = segments(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), SOFT - LUNG)
    caps = np.concatenate([np.concatenate(starts), np.concatenate(ends)])
    in_air = (holds(lungs, caps).any(1) & ~holds(organs, caps).any(1)).reshape(2, -1).all(0)
    return pick(tree, in_air)


def _smooth(points: Array) -> Array:
    """Return (13, 3) points on a cubic polynomial through the (K, 3) knots' course."""
    t = np.linspace(0, 1, len(points))
    return np.stack([np.polyval(np.polyfit(t, column, 3), np.linspace(0, 1, 13)) for column in points.T], axis=1)


def _rotation(about_x: float, about_y: float, about_z: float) -> Array:
    matrix: Array = cv2.Rodrigues(np.array([about_x, 0.0, 0.0]))[0]
    return matrix @ cv2.Rodrigues(np.array([0.0, about_y, 0.0]))[0] @ cv2.Rodrigues(np.array([0.0, 0.0, about_z]))[0]


def _waves(rng: np.random.Generator, count: int, shortest: float, longest: float) -> Waves:
    """Draw plane waves with wavelengths in cm between the two."""
    k, angle = 2 * np.pi / rng.uniform(shortest, longest, count), rng.uniform(0, 2 * np.pi, count)
    return Waves(np.stack([k * np.cos(angle), k * np.sin(angle)], axis=1), rng.uniform(0, 2 * np.pi, count))


def _moved_waves(waves: Waves, scale: float, rotation: Array, shift: Array) -> Waves:
    k = waves.k @ rotation.T / scale
    return Waves(k, waves.phase - k @ shift)


# ------------------------------------------------------------------------------------------------ projection


def project_thorax(thorax: Thorax, image_size: int) -> Array:
    """Integrate the attenuation coefficients along parallel rays.

    Returns:
        (H, W) attenuation -ln(I / I0), no unit, row 0 at the top.
    """
    axis = _ray_axis(image_size)
    x, z = axis[None, None, :], -axis[None, :, None]
    total = SOFT * union_length(*intervals(thorax.body, x, z)) * (1 + 0.015 * _field(thorax.tissue, axis))
    deficit = np.full_like(total, thorax.air - SOFT)
    for sheet in thorax.septa:  # soft tissue where the field crosses zero: a network of lines
        deficit += thorax.interstitial * (SOFT - thorax.air) * np.exp(-np.square(_field(sheet, axis) / 0.25))
    for side in range(2):
        enter, leave = (bound[0] for bound in intervals(pick(thorax.lungs, [side]), x, z))
        rows, columns = _extent(leave > enter)
        part = rows, columns
        obstacles = intervals(thorax.organs, x[:, :, columns], z[:, rows])
        total[part] += deficit[part] * free_length(enter[part], leave[part], obstacles)
    for family in thorax.details:
        _add_details(total, family)
    return total + sum(project_lesion(thorax, lesion, image_size) for lesion in thorax.lesions)


def project_lesion(thorax: Thorax, lesion: Lesion, image_size: int) -> Array:
    """Return the (H, W) attenuation that one opacity adds: its excess times its length in the air of its lung."""
    side, blobs = lesion
    axis = _ray_axis(image_size)
    total = np.zeros((image_size, image_size))
    for index in range(len(blobs.centre)):
        blob = pick(blobs, [index])
        (across, _, up), reach = blob.centre[0], blob.reach[0]
        x, z = axis[None, None, np.abs(axis - across) <= reach], -axis[None, np.abs(axis + up) <= reach, None]
        if x.size and z.size:
            enter, leave = (bound[0] for bound in intervals(blob, x, z))
            lung = [bound[0] for bound in intervals(pick(thorax.lungs, [side]), x, z)]
            free = free_length(np.clip(enter, *lung), np.clip(leave, *lung), intervals(thorax.organs, x, z))
            total[np.ix_(np.abs(axis + up) <= reach, np.abs(axis - across) <= reach)] += blob.excess[0] * free
    return total


def _ray_axis(image_size: int) -> Array:
    return (np.arange(image_size) - (image_size - 1) / 2) * (FIELD / image_size)


def _extent(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box around a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _field(waves: Waves, axis: Array) -> Array:
    """Return the (H, W) sum of plane waves, variance 1; a product of two thin matrices, so cheap."""
    along_x = np.exp(1j * (waves.k[:, :1] * axis + waves.phase[:, None]))
    along_z = np.exp(-1j * waves.k[:, 1:] * axis)
    field: Array = (along_z.T @ along_x).real * np.sqrt(2 / len(waves.k))
    return field


def _add_details(image: Array, solids: Solids) -> None:
    """Add excess times chord of N small solids to (H, W) attenuation, each solid on its own patch of rays."""
    size = len(image)
    pixel = FIELD / size
    half = int(np.ceil(solids.reach.max() / pixel)) + 1
    patch = np.arange(-half, half + 1)
    columns = np.rint(solids.centre[:, 0] / pixel + (size - 1) / 2).astype(int)[:, None] + patch
    rows = np.rint(-solids.centre[:, 2] / pixel + (size - 1) / 2).astype(int)[:, None] + patch
    x, z = (columns - (size - 1) / 2) * pixel, -(rows - (size - 1) / 2) * pixel
    enter, leave = intervals(solids, x[:, None, :], z[:, :, None])
    added = (leave - enter) * solids.excess[:, None, None]
    added *= ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    index = np.clip(rows, 0, size - 1)[:, :, None] * size + np.clip(columns, 0, size - 1)[:, None, :]
    image += np.bincount(index.ravel(), added.ravel(), minlength=size * size).reshape(size, size)


def expose(attenuation: Array, rng: np.random.Generator) -> Image:
    """Return the (H, W) 12-bit image, 0 to 4095, denser brighter: photons, noise, blur, logarithm."""
    primary = np.exp(-attenuation)
    coarse = cv2.resize(primary, (32, 32), interpolation=cv2.INTER_AREA)
    broad = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 5), primary.shape[::-1], interpolation=cv2.INTER_LINEAR)
    dose = PHOTONS * np.exp(rng.normal(0, 0.25))
    counts = rng.poisson(dose * (primary + SCATTER * broad)).astype(float)
    blurred = cv2.GaussianBlur(counts, (0, 0), 0.0025 * len(counts))
    signal = -np.log(np.maximum(blurred, 1) / PHOTONS)
    return np.rint(np.clip(signal / FULL_SCALE, 0, 1) * 4095).astype(np.uint16)
