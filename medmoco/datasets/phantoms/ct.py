"""CT of the phantoms: Hounsfield units of the analytic thorax on a grid, with nodules, opacities and effusions.

The patient lies supine, arms raised, on a table. Lengths are in cm and the axes are those of thorax.py: x to the
patient's left, y to the front, z to the head. Values are in HU; mixtures are linear in them.

Like the films, these volumes carry no clinical evidence. The model is simplified: nothing is reconstructed from
projections, so there are no streaks, and noise is a correlated field whose level follows the attenuation of the slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from medmoco.datasets.phantoms.solids import Array, Solids, ellipsoid, holds, join, moved, pick
from medmoco.datasets.phantoms.thorax import LUNG, SOFT, Lesion, Person, Pose, Thorax, build_thorax, draw_lesions
from medmoco.datasets.phantoms.voxels import Grid, Shares, add_up, cover, region_around, resolved, shares_of

WATER = 0.2059  # 1/cm at 60 keV, the energy of thorax.py; source: NISTIR 5632 table 4
AIR, FAT, MUSCLE, BLOOD, LIVER = -1000.0, -100.0, 50.0, 42.0, 62.0
INFLATED = -870.0  # lung of average density in deep inspiration, at the front
BONE = 0.5  # share of the excess over soft tissue in the films, whose cortical bone is thicker than real
# The next four make the labels neither trivial nor impossible. With 360 patients, logistic regression on 16 x 16 x 16
# voxels has an AUROC of 0.56 for Nodule, 0.80 for Opacity and 0.97 for Effusion on 120 others.
NODULE, FLUID = (20.0, 60.0), (0.0, 20.0)
DIAMETER = (1.0, 3.0)  # of nodules
DEPTH, TOP = (1.5, 5.0), (-4.0, 6.0)  # of effusions: at the base of the lung, and z where they end
CHANCES = {"Nodule": 0.42, "Effusion": 0.40}  # of a patient, and of a study

Kernel = Literal["soft", "sharp"]


@dataclass(frozen=True)
class Effusion:
    """Fluid in one pleural space, deepest at the base of the lung, with a surface that rises towards the wall."""

    side: int  # 0 for the right lung, 1 for the left
    depth: float
    top: float  # z above which there is no fluid
    rise: float  # of the surface at the wall
    value: float  # HU

    def level(self, z: Array | Shares, wall: Array | Shares | float = 0.0) -> Array | Shares:
        """Return y of the surface in a body of scale 1; `wall` rises from 0 in the middle of the lung to 1."""
        ramp = np.clip((self.top - z) / (self.top + 9), 0, 1)
        return ramp * (self.depth + self.rise * wall) - 9.2


@dataclass(frozen=True)
class Scan:
    """What the series of a study share: the patient on the table, and the field of view."""

    person: Person
    pose: Pose
    study: int
    nodules: tuple[Lesion, ...]  # without the pose
    values: tuple[float, ...]  # HU of each nodule
    opacities: tuple[Lesion, ...]  # without the pose; those of the films of the study
    effusions: tuple[Effusion, ...]
    centre: tuple[float, float]  # of the field of view: x and y
    field: float  # its side
    ends: tuple[float, float]  # z of the lowest and highest slices


def draw_scan(person: Person, study: int) -> Scan:
    """Return a study of a patient, who has the same nodules in each."""
    rng = np.random.default_rng([person.seed, person.number, 6, study])
    nodules, values = _draw_nodules(person)
    turn, shift = rng.normal(0, (0.06, 0.05, 0.08)), rng.normal(0, 0.7, 2)
    return Scan(
        person,
        Pose((turn[0], turn[1], turn[2]), (shift[0], shift[1]), float(np.clip(rng.normal(-0.4, 0.6), -1.5, 1.0))),
        study,
        nodules,
        values,
        draw_lesions(person, study),
        _draw_effusions(rng),
        (float(rng.normal(0, 0.8)), float(rng.normal(-1.5, 0.8))),
        float(rng.uniform(37, 43)),
        (float(rng.uniform(-17.0, -13.5)), float(rng.uniform(12.0, 15.5))),
    )


def _draw_effusions(rng: np.random.Generator) -> tuple[Effusion, ...]:
    if rng.random() > CHANCES["Effusion"]:
        return ()
    sides = [(0,), (1,), (0, 1)][int(rng.integers(3))]
    return tuple(
        Effusion(side, *(float(rng.uniform(*bounds)) for bounds in (DEPTH, TOP, (0.5, 2.0), FLUID))) for side in sides
    )


def _draw_nodules(person: Person) -> tuple[tuple[Lesion, ...], tuple[float, ...]]:
    """Return none or one to four nodules in the air of the lungs, and the HU of each."""
    rng = np.random.default_rng([person.seed, person.number, 7])
    if rng.random() > CHANCES["Nodule"]:
        return (), ()
    thorax = build_thorax(replace(person, scale=1.0), Pose(breath=1.0))  # the highest diaphragm
    nodules = [_draw_nodule(thorax, rng.uniform(*DIAMETER) / 2 / person.scale, rng) for _ in range(rng.integers(1, 5))]
    return tuple(nodules), tuple(rng.uniform(*NODULE, len(nodules)).tolist())


def _draw_nodule(thorax: Thorax, radius: float, rng: np.random.Generator) -> Lesion:
    """Return a sphere with bumps, in one lung and above the level of any effusion, which would hide it."""
    margin = (radius + 0.4) * np.vstack([np.eye(3), -np.eye(3)])
    deepest = Effusion(0, DEPTH[1], TOP[1], 0.0, 0.0)
    while True:
        centre = thorax.lungs.centre[0] + rng.uniform(-1, 1, 3) * (13, 9, 16)
        around = centre + margin
        sides = holds(thorax.lungs, around).all(axis=0)
        free = not holds(thorax.organs, around).any()
        if sides.any() and free and (around[:, 1] > deepest.level(around[:, 2])).all():
            break
    blobs = [ellipsoid(centre, radius * rng.uniform(0.8, 1.0, 3))]
    for _ in range(5):
        offset = rng.normal(size=3)
        offset *= 0.6 * radius / np.linalg.norm(offset)
        blobs.append(ellipsoid(centre + offset, radius * rng.uniform(0.4, 0.6, 3)))
    return int(sides.argmax()), join(*blobs)


def scan_grid(scan: Scan, image_size: int, distance: float, thickness: float) -> Grid:
    """Return the voxels of a series: slices of `image_size` pixels a side, x from left to right as in RAS."""
    pixel = scan.field / image_size
    ticks = (np.arange(image_size) - (image_size - 1) / 2) * pixel
    slices = np.arange(scan.ends[0], scan.ends[1], distance)
    x, y, z = (t.astype(np.float32) for t in (scan.centre[0] - ticks, scan.centre[1] + ticks, slices))
    return Grid(x, y, z, (pixel, pixel, thickness))


def render(scan: Scan, grid: Grid) -> Shares:
    """Return the (X, Y, Z) values of a scan in HU, without noise."""
    person = scan.person
    thorax = build_thorax(replace(person, vessels=_filled(person.vessels)), scan.pose, scan.nodules + scan.opacities)
    rng = np.random.default_rng([person.seed, person.number, 8, scan.study])
    texture = smooth_field(rng, grid, 1.5)
    hu = _table(thorax, rng, grid)
    body = _body(hu, thorax, person, texture, grid)
    _lungs(hu, thorax, scan, smooth_field(rng, grid, 0.5), grid)
    frame = pick(thorax.details, slice(len(person.frame.centre)))
    airways = frame.excess == -SOFT
    _paint(hu, cover(pick(frame, airways), grid), AIR)
    _bones(hu, pick(frame, ~airways), body, grid)
    return hu


def _filled(vessels: Solids) -> Solids:
    """Return the vessels, which the films need near one plane only, and copies of thin ones before and behind it."""
    thin = pick(vessels, np.trace(vessels.quadric, axis1=1, axis2=2) > 2 / 0.3**2)
    turns = (np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]]) for t in (-0.6, 0.6))
    return join(vessels, *(moved(thin, 1.0, turn, np.zeros(3)) for turn in turns))


def _paint(hu: Shares, share: Shares, value: float | Shares) -> None:
    """Replace a share of each voxel by a material."""
    hu += share * (value - hu)


def _table(thorax: Thorax, rng: np.random.Generator, grid: Grid) -> Shares:
    """Return air with a table: a mattress on a curved shell filled with foam."""
    torso = pick(thorax.body, [0])
    contact = float(torso.centre[0, 1] - torso.box[0, 1]) + 0.3
    below = contact + np.square(grid.x - torso.centre[0, 0])[:, None] / 110 - grid.y[None, :]  # depth in the table
    inside = np.clip((21.0 - np.abs(grid.x - rng.normal(0, 0.5)))[:, None] / grid.size[0], 0, 1)
    plane = np.full(below.shape, AIR, np.float32)
    for top, bottom, value in ((0.0, 1.2, -930.0), (1.2, 4.2, -180.0), (1.45, 3.95, -960.0)):
        share = np.clip((below - top) / grid.size[1] + 0.5, 0, 1) * np.clip((bottom - below) / grid.size[1] + 0.5, 0, 1)
        plane += share * inside * (value - plane)
    return np.repeat(plane[:, :, None], len(grid.z), axis=2)


def _body(hu: Shares, thorax: Thorax, person: Person, texture: Shares, grid: Grid) -> Shares:
    """Paint fat, muscle and the organs outside the lungs; return the share of the body."""
    solids = pick(thorax.body, [0, 1, 2, 3, *range(6, len(thorax.body.centre))])  # not the arms, which are raised
    body = cover(solids, grid)
    _paint(hu, body, FAT + 8 * texture)
    lean = min(0.93 / person.girth, 0.96)
    muscle = pick(solids, slice(4))
    muscle = muscle._replace(quadric=muscle.quadric / lean**2, box=muscle.box * lean)
    _paint(hu, cover(muscle, grid), MUSCLE + 10 * texture)
    lumps = np.clip(0.5 + 1.5 * texture, 0, 1)  # of fat between organs
    heart, liver, spleen, mediastinum, _, _, *great = range(len(thorax.organs.centre))
    for which, value in (
        ([mediastinum], FAT + lumps * (BLOOD - FAT)),
        ([spleen], FAT + np.sqrt(lumps) * (MUSCLE - FAT)),
        ([liver], LIVER + 5 * texture),
        ([heart, *great], BLOOD + 3 * texture),
    ):
        _paint(hu, cover(pick(thorax.organs, which), grid), value)
    return body


def _lungs(hu: Shares, thorax: Thorax, scan: Scan, texture: Shares, grid: Grid) -> None:
    """Paint the air of the lungs, and in it vessels, opacities, fluid and nodules."""
    region = region_around(thorax.lungs, grid)
    grid, hu, texture = grid.within(region), hu[region], texture[region]
    vessels, weights = resolved(pick(thorax.details, slice(len(scan.person.frame.centre), None)), grid)
    vessel = np.minimum(add_up(vessels, weights, grid), 1)
    free = 1 - cover(thorax.organs, grid)
    nodules, opacities = thorax.lesions[: len(scan.nodules)], thorax.lesions[len(scan.nodules) :]
    density = 350 * (scan.person.density / LUNG - 1) - 6 * (grid.columns()[1] + 9)  # blood settles at the back
    for side in (0, 1):
        lung = INFLATED + 50 + density + 25 * texture
        above = [
            (effusion, _height(effusion, thorax, scan, grid)) for effusion in scan.effusions if effusion.side == side
        ]
        for _, height in above:
            lung += 450 * np.exp(-np.maximum(height, 0) / 0.7)  # compressed next to the fluid
        _paint(lung, vessel, BLOOD)
        for blobs in (blobs for of, blobs in opacities if of == side):
            filled = add_up(blobs, (blobs.excess / (SOFT - scan.person.density)).astype(np.float32), grid)
            _paint(lung, np.minimum(filled, 1), FLUID[1])
        for effusion, height in above:
            _paint(lung, np.clip(0.5 - height / grid.size[1], 0, 1), effusion.value)
        for (of, blobs), value in zip(nodules, scan.values, strict=True):
            if of == side:
                _paint(lung, cover(blobs, grid), value)
        _paint(hu, cover(pick(thorax.lungs, [side]), grid) * free, lung)


def _height(effusion: Effusion, thorax: Thorax, scan: Scan, grid: Grid) -> Shares:
    """Return the (X, Y, Z) height of each voxel above the surface of an effusion."""
    scale = scan.person.scale
    x, y, z = (
        (ticks - centre) / scale
        for ticks, centre in zip(grid.columns(), thorax.lungs.centre[effusion.side].tolist(), strict=True)
    )
    wall = np.minimum(np.square(x / 13.2) + np.square(y / 9.2) + np.square(z / 17), 1) ** 6
    height: Shares = scale * (y - effusion.level(z - 3, wall))
    return height


def _bones(hu: Shares, bones: Solids, body: Shares, grid: Grid) -> None:
    """Paint bones over soft tissue; those of the arms, which the films show hanging, lie outside the body."""
    bones, weights = resolved(bones, grid)
    share, excess = np.zeros_like(hu), np.zeros_like(hu)
    for index, region, inside in shares_of(bones, grid):
        inside *= weights[index]
        if bones.excess[index] > 0:  # the others are the spongy cores of solids that are counted already
            share[region] += inside
        excess[region] += np.float32(bones.excess[index] * 1000 * BONE / WATER) * inside
    share = np.minimum(share, 1) * body
    _paint(hu, share, MUSCLE)
    hu += np.minimum(excess, 1000) * body


def smooth_field(rng: np.random.Generator, grid: Grid, wavelength: float) -> Shares:
    """Return an (X, Y, Z) random field with variance 1: cubic B-splines on a lattice that is fixed in space."""
    knots = np.arange(-24.0, 24.0 + wavelength, wavelength)
    field = rng.standard_normal((len(knots),) * 3, np.float32)
    for ticks in grid[:3]:
        t = np.abs(ticks[:, None] - knots) / wavelength
        spline = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6).astype(np.float32)
        field = np.tensordot(field, spline / np.sqrt(np.float32(0.4794)), axes=(0, 1))  # the integral of its square
    return field


def acquire(hu: Shares, grid: Grid, kernel: Kernel, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Return the (X, Y, Z) values of a reconstruction with its blur and noise, in whole HU of 12 bits."""
    pixel = 10 * grid.size[0]  # mm
    blurred = gaussian_filter(hu, (1.3 / pixel, 1.3 / pixel, 0))
    image = blurred if kernel == "soft" else hu + 0.4 * (hu - blurred)
    noise = rng.standard_normal(hu.shape, np.float32)
    smooth = gaussian_filter(noise, (2.2 / pixel, 2.2 / pixel, 0.4), mode="wrap")
    noise = smooth if kernel == "soft" else noise - 0.5 * smooth
    # Rays through the shoulders lose more photons; the tube current makes up for part of it.
    path = (hu / 1000 + 1).sum(axis=0).max(axis=0) * (WATER * grid.size[0])
    level = (14 if kernel == "soft" else 45) * np.sqrt(0.4 / grid.size[2]) * np.exp(0.15 * (path - path.mean()))
    image = image + noise * (level / noise.std()).astype(np.float32)
    whole: npt.NDArray[np.int16] = np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
    return whole
