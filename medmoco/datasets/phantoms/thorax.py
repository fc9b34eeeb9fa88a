"""Anatomy of the phantoms: an analytic thorax and its projection.

Soft tissue, lungs, heart, diaphragm, bones, vessels and airways are ellipsoids and tubes (solids.py) with attenuation
coefficients. Parallel rays run from back to front; the length of every ray in every solid is exact.

Lengths are in cm, attenuation coefficients in 1/cm. x points to the right of the image (the patient's left), y from
back to front along the rays, z up; the origin is the centre of the chest and of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from medmoco.datasets.phantoms.solids import (
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

# Linear coefficients at 60 keV, about the mean energy of a 120 kV chest beam: mass coefficient (cm2/g) x density
# (g/cm3). Source: NISTIR 5632 table 4 and ICRU Report 44, whose inflated lung has 0.26 g/cm3.
SOFT = 0.2048 * 1.06
LUNG = 0.2053 * 0.26
CORTICAL = 0.3148 * 1.92
SPONGY = 0.3148 * 0.40 + 0.2048 * 0.80  # a mixture of bone and marrow with 1.2 g/cm3

FIELD = 36.0  # side of the detector
# The next three make the labels neither trivial nor impossible. On the test set of 270 patients, with two seeds,
# logistic regression on 32 x 32 pixels has an AUROC of 0.80 to 0.82 for Opacity and 0.65 to 0.74 for Interstitial;
# on local high-frequency energy it has 0.97 for Interstitial.
LESION_SIZE = (2.3, 4.1)  # approximate radius of a lesion
LESION_FILLING = (0.5, 1.0)  # share of air that a lesion replaces by fluid where three of its ellipsoids overlap
NETWORK = (0.04, 0.14)  # the same share at a line of the interstitial network

Lesion = tuple[int, Solids]  # lung (0 on the left of the image) and the ellipsoids in it


class Waves(NamedTuple):
    """A random field over (x, z): the sum of M plane waves."""

    k: Array  # (M, 2) rad/cm
    phase: Array  # (M,)


@dataclass(frozen=True)
class Person:
    """A patient across images; `seed` and `number` determine all other draws."""

    seed: int
    number: int
    sex: Literal["F", "M"]
    age: int
    scale: float  # of the whole body
    girth: float  # of the soft tissue
    heart: float  # size of the heart
    density: float  # 1/cm, of the lung at middle inflation
    interstitial: float  # share of the air that the network replaces at a line; 0 without the disease
    frame: Solids  # bones and airways
    vessels: Solids  # including those that lie outside the air of an image
    septa: tuple[Waves, ...]  # sheets of the interstitial network
    tissue: Waves  # slow variation of the soft tissue


@dataclass(frozen=True)
class Pose:
    """A patient in one image: three angles in rad, the shift and the height of the diaphragm in cm."""

    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    breath: float = 0.0
    view: Literal["PA", "AP"] = "PA"


@dataclass(frozen=True)
class Thorax:
    """Everything that attenuates the rays."""

    body: Solids  # soft tissue; overlaps count once
    lungs: Solids  # two, inside the body
    organs: Solids  # displace the air of the lungs; overlaps count once
    details: Solids  # bones, vessels and airways: each adds its excess
    lesions: tuple[Lesion, ...]  # add their excess where there is air
    air: float  # 1/cm, of the inflated lung
    septa: tuple[Waves, ...]  # sheets of the interstitial network; empty without the disease
    interstitial: float  # share of the air that the network replaces at a line
    tissue: Waves  # slow variation of the soft tissue


def draw_person(seed: int, number: int) -> Person:
    """Return patient `number` (from 1) of a seed."""
    rng = np.random.default_rng([seed, number, 0])
    female = rng.random() < 0.5
    return Person(
        seed,
        number,
        "F" if female else "M",
        int(rng.integers(20, 90)),
        scale=(0.95 if female else 1.02) * rng.normal(1, 0.03),
        girth=float(np.clip(rng.normal(1.04, 0.06), 0.92, 1.3)),
        heart=float(np.clip(rng.normal(1, 0.08), 0.8, 1.25)),
        density=LUNG * float(np.clip(rng.normal(1, 0.10), 0.7, 1.5)),
        interstitial=float(rng.uniform(*NETWORK)) if rng.random() < 0.4 else 0.0,
        frame=join(_bones(rng), _airways(rng)),
        vessels=_vessels(rng),
        septa=tuple(_waves(rng, 48, 1.1, 2.2) for _ in range(3)),
        tissue=_waves(rng, 24, 2.0, 9.0),
    )


def draw_pose(person: Person, study: int, image: int) -> Pose:
    """Return the pose of a patient for one image of a study."""
    rng = np.random.default_rng([person.seed, person.number, 1, study, image])
    ap = rng.random() < 0.25
    turn = rng.normal(0, (0.04, 0.03, 0.05))
    shift = rng.normal(0, 0.5, 2)
    breath = rng.normal(1.0 if ap else 0.0, 0.5)
    return Pose((turn[0], turn[1], turn[2]), (shift[0], shift[1]), float(breath), "AP" if ap else "PA")


def draw_lesions(person: Person, study: int) -> tuple[Lesion, ...]:
    """Return the opacities of a study: no, one or two clusters of ellipsoids, well inside the air of a lung."""
    rng = np.random.default_rng([person.seed, person.number, 2, study])
    if rng.random() > 0.45:
        return ()
    return tuple(_draw_lesion(person, rng) for _ in range(rng.choice([1, 1, 2])))


def _draw_lesion(person: Person, rng: np.random.Generator) -> Lesion:
    lungs, organs = _lungs(), _organs(person.heart, breath=0.0)
    margin = 1.5 * np.vstack([np.eye(3), -np.eye(3)])
    while True:
        side = int(rng.integers(2))
        centre = lungs.centre[0] + rng.uniform(-1, (1, 1, 0.5)) * (13, 8, 14)
        if holds(lungs, centre + margin)[:, side].all() and not holds(organs, centre + margin).any():
            break
    size, filled = rng.uniform(*LESION_SIZE), rng.uniform(*LESION_FILLING) * (SOFT - person.density)
    blobs = [
        ellipsoid(centre + size * rng.normal(0, 0.5, 3), size * rng.uniform(0.5, 1.1, 3), excess=filled / 3)
        for _ in range(rng.integers(6, 11))
    ]
    return side, join(*blobs)


def build_thorax(person: Person, pose: Pose, lesions: tuple[Lesion, ...] = ()) -> Thorax:
    """Return the anatomy of a patient in the pose of one image."""
    lungs, organs = _lungs(), _organs(person.heart * (1.12 if pose.view == "AP" else 1.0), pose.breath)
    details = join(person.frame, _prune(person.vessels, lungs, organs))
    rotation = _rotation(*pose.turn)
    place = partial(moved, scale=person.scale, rotation=rotation, shift=np.array([pose.shift[0], 0.0, pose.shift[1]]))
    flow = partial(_moved_waves, scale=person.scale, rotation=rotation[::2, ::2], shift=np.array(pose.shift))
    return Thorax(
        place(_body(person)),
        place(lungs),
        place(organs),
        place(details),
        tuple((side, place(lesion)) for side, lesion in lesions),
        person.density * (1 + 0.06 * pose.breath),
        tuple(flow(waves) for waves in person.septa) if person.interstitial else (),
        person.interstitial,
        flow(person.tissue),
    )


def _body(person: Person) -> Solids:
    g = person.girth
    parts = [
        ellipsoid((0, 0, -8), (17.0 * g, 11.2 * g, 30)),
        ellipsoid((0, -0.5, 20), (5.8, 6.0, 12)),
        *(ellipsoid((side * 6.5, -2.5, 12), (11.5, 5.5, 4.6), turn=_rotation(0, side * 0.42, 0)) for side in (-1, 1)),
        *(
            ellipsoid((side * 17, -1.5, 0), (4.6 * g, 5.2 * g, 14), turn=_rotation(0, -side * 0.12, 0))
            for side in (-1, 1)
        ),
    ]
    if person.sex == "F":
        parts += [ellipsoid((side * 7.8, 8.6 * g, -4.5), (6.2, 4.2 * g, 5.4)) for side in (-1, 1)]
    return join(*parts)


def _lungs() -> Solids:
    """Return both halves of the rib cage, without the mediastinum; diaphragm and heart are subtracted later."""
    floor = ((0.0, 0.0, -1.0), 9.2)
    cage = partial(ellipsoid, (0.0, 0.0, -3.0), (13.2, 9.2, 17.0))
    return join(cage(planes=[((1.0, 0.0, 0.0), -1.4), floor]), cage(planes=[((-1.0, 0.0, 0.0), -1.4), floor]))


def _organs(heart: float, breath: float) -> Solids:
    return join(
        ellipsoid((2.3, 3, -5.3), (6.3 * heart, 4.6 * heart, 4.7 * heart), turn=_rotation(0, 0.6, 0)),
        ellipsoid((-6.5, 0, -15 + breath), (6.1, 10, 8.5)),
        ellipsoid((6.5, 0, -16.2 + breath), (6.1, 10, 8.5)),
        ellipsoid((0.3, 1.5, 6), (2.5, 5, 13)),  # mediastinum
        ellipsoid((0.2, -6.5, -4), (2.5, 3.6, 30)),  # spine and aorta
        ellipsoid((0, 1, -15 + breath), (4, 10, 6.5)),  # the diaphragm under the heart
        ellipsoid((2.5, -1, 6.2), (1.7, 2.4, 1.7)),  # aortic arch
        ellipsoid((2.4, 1, 2.0), (2.1, 1.8, 2.4)),  # pulmonary trunk
        ellipsoid((-1.2, 1, 4.5), (1.7, 1.7, 6.5)),  # superior vena cava, ascending aorta
    )


def _bones(rng: np.random.Generator) -> Solids:
    spacing, slope = rng.normal(2.2, 0.06), rng.normal(1, 0.06)
    ribs = [
        _bone(partial(_thin_tube, _rib(level, side, spacing, slope), 0.56)) for level in range(10) for side in (-1, 1)
    ]
    knots = [[1.7, 5.5, 8.4], [4, 6.2, 9.6], [7, 5.6, 10.9], [10, 3.4, 11.6], [13, 1.2, 12.2], [16, 0, 12.9]]
    clavicle = _smooth(np.array(knots))
    clavicles = [_bone(partial(_thin_tube, clavicle * (side, 1, 1), 0.6)) for side in (-1, 1)]
    vertebrae = [_vertebra(17.5 - 2.45 * k, 0.7 + 0.022 * k) for k in range(16)]
    plates = []
    for side in (-1, 1):
        turn = _rotation(0.1, side * 0.22, side * 0.45)
        plates.append(ellipsoid((side * 13.4, -8.2, 4.5), (3.4, 0.28, 6.5), excess=0.5 * (CORTICAL - SOFT), turn=turn))
        plates.append(ellipsoid((side * 17.3, -1.5, 11.8), (2.3, 2.3, 2.3), excess=SPONGY - SOFT))  # humerus
    sternum = ellipsoid((0, 8.4, 2.5), (2.0, 0.6, 8.5), excess=SPONGY - SOFT)
    return join(*ribs, *clavicles, *vertebrae, *plates, sternum)


def _bone(outline: Callable[[float, float], Solids], shell: float = 0.17) -> Solids:
    """Return spongy bone in a cortical shell; `outline` takes an inset in cm and the excess."""
    return join(outline(0.0, CORTICAL - SOFT), outline(shell, SPONGY - CORTICAL))


def _thin_tube(points: Array, radius: float, inset: float, excess: float) -> Solids:
    return tube(points, radius - inset, excess)


def _rib(level: int, side: int, spacing: float, slope: float) -> Array:
    """Return (18, 3) points of a rib, which descends from the spine around the cage to the front."""
    angle = np.linspace(0.2, 2.6 - 0.05 * max(level - 5, 0), 18)
    z = 13.3 - spacing * level - slope * (4.5 + 0.75 * level) * (1 - np.cos(angle)) / 2
    wide = np.sqrt(np.maximum(1 - np.square((z + 3) / np.where(z > -3, 17.3, 34)), 0.03))
    return np.stack([side * 13.5 * wide * np.sin(angle), -9.5 * wide * np.cos(angle), z], axis=1)


def _vertebra(z: float, size: float) -> Solids:
    def body(inset: float, excess: float) -> Solids:
        ends = [((0.0, 0.0, sign), 0.98 - inset) for sign in (-1.0, 1.0)]
        axes = np.array([1.75 * size, 1.4 * size, 2.6]) - inset
        return ellipsoid((0, -5.6, z), axes, excess=excess, planes=ends)

    dense = CORTICAL - SOFT
    pedicles = [ellipsoid((x * size, -7.2, z + 0.3), (0.33, 0.9, 0.5), excess=dense) for x in (-1.2, 1.2)]
    return join(_bone(body), *pedicles, ellipsoid((0, -9, z - 0.6), (0.28, 1.2, 0.75), excess=dense))


def _airways(rng: np.random.Generator) -> Solids:
    trachea = np.array([[0, 2, 21], [0, 1, 16], [0.1, 0.2, 11], [0.2, -0.3, 7.5], [0.2, -0.5, 5.2]])
    left, right = np.array([[0.2, -0.5, 5.2], [2.4, -0.6, 3.4]]), np.array([[0.2, -0.5, 5.2], [-1.9, -0.6, 3.3]])
    tubes = [tube(_smooth(trachea), 0.85, -SOFT), tube(left, 0.55, -SOFT), tube(right, 0.62, -SOFT)]
    x, z, size = rng.uniform(4, 7), rng.uniform(-14.5, -12.5), rng.uniform(0.6, 1.5)
    return join(*tubes, ellipsoid((x, 1, z), (1.5 * size, 1.2 * size, 0.8 * size), excess=-SOFT))  # stomach bubble


def _vessels(rng: np.random.Generator) -> Solids:
    """Return two trees that branch from the hila."""
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
    return segments(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), SOFT - LUNG)


def _prune(vessels: Solids, lungs: Solids, organs: Solids) -> Solids:
    """Return the vessels with both ends in air."""
    reach = vessels.normals[:, 1] * vessels.heights[:, 1:]
    ends = np.concatenate([vessels.centre - reach, vessels.centre + reach])
    in_air = holds(lungs, ends).any(axis=1) & ~holds(organs, ends).any(axis=1)
    return pick(vessels, in_air.reshape(2, -1).all(axis=0))


def _smooth(points: Array) -> Array:
    """Return (13, 3) points on a cubic polynomial fitted to (K, 3) points."""
    t = np.linspace(0, 1, len(points))
    return np.stack([np.polyval(np.polyfit(t, column, 3), np.linspace(0, 1, 13)) for column in points.T], axis=1)


def _rotation(about_x: float, about_y: float, about_z: float) -> Array:
    """Return the (3, 3) rotation about z, then y, then x; angles in rad."""
    matrix = np.eye(3)
    for angle, (first, second) in ((about_z, (0, 1)), (about_y, (2, 0)), (about_x, (1, 2))):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _waves(rng: np.random.Generator, count: int, shortest: float, longest: float) -> Waves:
    """Draw plane waves with wavelengths in cm from `shortest` to `longest`."""
    k, angle = 2 * np.pi / rng.uniform(shortest, longest, count), rng.uniform(0, 2 * np.pi, count)
    return Waves(np.stack([k * np.cos(angle), k * np.sin(angle)], axis=1), rng.uniform(0, 2 * np.pi, count))


def _moved_waves(waves: Waves, scale: float, rotation: Array, shift: Array) -> Waves:
    k = waves.k @ rotation.T / scale
    return Waves(k, waves.phase - k @ shift)


def project_thorax(thorax: Thorax, image_size: int) -> Array:
    """Integrate the attenuation coefficients along parallel rays.

    Returns:
        (H, W) attenuation -ln(I / I0), no unit, row 0 at the top.
    """
    axis = _ray_axis(image_size)
    deficit = np.full((image_size, image_size), thorax.air - SOFT)
    for sheet in thorax.septa:  # soft tissue where the field crosses zero: a network of lines
        deficit += thorax.interstitial * (SOFT - thorax.air) * np.exp(-np.square(_field(sheet, axis) / 0.25))
    soft = SOFT * (1 + 0.015 * _field(thorax.tissue, axis))
    strips = [slice(top, top + 32) for top in range(0, image_size, 32)]  # small enough for the CPU cache
    total = np.concatenate([_project_organs(thorax, axis, -axis[s], soft[s], deficit[s]) for s in strips])
    _add_details(total, thorax.details)
    for lesion in thorax.lesions:
        total += project_lesion(thorax, lesion, image_size)
    return total


def _project_organs(thorax: Thorax, x: Array, z: Array, soft: Array, deficit: Array) -> Array:
    """Return the (len(z), len(x)) attenuation of body and lungs; `soft` and `deficit` have the same shape."""
    x, z = np.broadcast_arrays(x[None, None, :], z[None, :, None])
    total: Array = soft * union_length(*intervals(thorax.body, x, z))
    for enter, leave in zip(*intervals(thorax.lungs, x, z), strict=True):
        hit = leave > enter
        organs = intervals(thorax.organs, x[:, None, hit], z[:, None, hit])
        total[hit] += deficit[hit] * free_length(enter[hit], leave[hit], organs)[0]
    return total


def project_lesion(thorax: Thorax, lesion: Lesion, image_size: int) -> Array:
    """Return the (H, W) attenuation that an opacity adds: its excess times its length in the air of the lung."""
    side, blobs = lesion
    axis = _ray_axis(image_size)
    columns, rows = (
        (np.abs(axis[:, None] - sign * blobs.centre[:, along]) <= blobs.box[:, along]).any(axis=1)
        for along, sign in ((0, 1), (2, -1))
    )
    x, z = axis[None, None, columns], -axis[None, rows, None]
    lung = [bound[0] for bound in intervals(pick(thorax.lungs, [side]), x, z)]
    organs = intervals(thorax.organs, x, z)
    total = np.zeros((image_size, image_size))
    for enter, leave, excess in zip(*intervals(blobs, x, z), blobs.excess, strict=True):
        total[np.ix_(rows, columns)] += excess * free_length(np.clip(enter, *lung), np.clip(leave, *lung), organs)
    return total


def _ray_axis(image_size: int) -> Array:
    return (np.arange(image_size, dtype=np.float64) - (image_size - 1) / 2) * (FIELD / image_size)


def _field(waves: Waves, axis: Array) -> Array:
    """Return the (H, W) sum of plane waves with variance 1, cheaply as a product of two thin matrices."""
    along_x = np.exp(1j * (waves.k[:, :1] * axis + waves.phase[:, None])) * np.sqrt(2 / len(waves.k))
    along_z = np.exp(-1j * waves.k[:, 1:] * axis)
    field: Array = np.real(along_z.T @ along_x)
    return field


def _add_details(image: Array, solids: Solids) -> None:
    """Add excess times chord length of N small solids to (H, W) attenuation, on a patch of rays around each centre."""
    size = len(image)
    pixel = FIELD / size
    halves = (2 * np.ceil(solids.box[:, ::2] / pixel / 2) + 1).astype(int)  # odd sizes only, for larger batches
    for half in np.unique(halves, axis=0):
        batch = pick(solids, (halves == half).all(axis=1))
        columns, rows = (
            np.rint(sign * batch.centre[:, along] / pixel + (size - 1) / 2).astype(int)[:, None] + np.arange(-h, h + 1)
            for along, sign, h in ((0, 1, half[0]), (2, -1, half[1]))
        )
        x, z = (columns - (size - 1) / 2) * pixel, -(rows - (size - 1) / 2) * pixel
        enter, leave = intervals(batch, x[:, None, :], z[:, :, None])
        added = (leave - enter) * batch.excess[:, None, None]
        added *= ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
        index = np.clip(rows, 0, size - 1)[:, :, None] * size + np.clip(columns, 0, size - 1)[:, None, :]
        image += np.bincount(index.ravel(), added.ravel(), minlength=size * size).reshape(size, size)
