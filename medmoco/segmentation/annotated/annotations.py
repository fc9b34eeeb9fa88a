"""The annotated images of a segmentation run: classes, a draw of the training patients, and what must not leak."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, Tree
from medmoco.data.manifest.splits import fraction_size, nested_places
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.evaluation.leakage.leakage import find_leaks, find_pretraining, leak_lines, refuse_leaks
from medmoco.evaluation.scoring.table import MACRO
from medmoco.segmentation.annotated.cases import Annotated, Case, read_cases
from medmoco.segmentation.masks.image_grid import ImageGrid
from medmoco.segmentation.masks.mask_rows import MaskedRows, class_values, masked_rows
from medmoco.segmentation.masks.masks import Classes, unnamed_classes
from medmoco.segmentation.scores.metrics import IN_PIXELS, OF_IMAGES, OF_VOLUMES, Units
from medmoco.segmentation.scores.records import CaseFacts, CaseSplit, Integers


@dataclass(frozen=True)
class Annotations:
    """The annotated images of all splits.

    Attributes:
        classes: The classes.
        splits: Splits by name; train has the patients drawn.
        notes: Messages for the user.
    """

    classes: Classes
    splits: dict[str, Annotated]
    notes: list[str]

    @property
    def scored(self) -> list[str]:
        """Names of the splits that are scored."""
        return [name for name in self.splits if name != "train"]


def load_annotations(settings: RunSettings, encoder: str, test: bool) -> Annotations:
    """Read images and masks of train, val and perhaps test.

    Args:
        settings: Those of the run, see `settings_of_run`.
        encoder: Source of the encoder, whose training data must not be in the test set.
        test: Read the test set too.

    Raises:
        ManifestError: manifest or masks cannot be used, or test shares patients or images with the training data.
        SettingsError: the classes contradict each other.
        ImageError: an image or a mask cannot be used; names the row.
    """
    chosen, data = settings.segmentation, settings.data
    splits = load_splits(settings, ("train", "val", *(["test"] if test else [])))
    pretraining = find_pretraining(encoder)
    leaks = find_leaks(splits, pretraining)
    refuse_leaks(leaks, settings)
    rows = {name: masked_rows(split, data, runs=chosen.runs) for name, split in splits.items()}
    if chosen.classes:
        classes = Classes(tuple(chosen.classes), tuple(chosen.classes.values()), chosen.ignore)
    else:
        classes = unnamed_classes(class_values(rows["train"], data, chosen.ignore), chosen.ignore)
    if MACRO in classes.names:
        raise SettingsError(f"'{MACRO}' is the mean over classes in every table; rename that class")
    kept = drawn(rows["train"].split.patients, settings.seed, chosen.label_fraction, chosen.label_draw)
    used = {**rows, "train": _select(rows["train"], kept)}
    annotated = {name: read_cases(own, classes, data) for name, own in used.items()}
    _refuse_nothing_to_learn(annotated, classes)
    notes = [notice for split in splits.values() for notice in split.notices]
    notes += [
        f"{name}: {len(splits[name]) - len(own)} of {len(splits[name])} rows have no mask and are not used"
        for name, own in rows.items()
        if len(own) < len(splits[name])
    ]
    notes += [*leak_lines(leaks), *pretraining.notes, _describe(annotated, classes)]
    if settings.segmentation.frozen and encoder == "random":
        notes.append("the encoder is random and frozen: this is the control for a frozen pretrained one")
    return Annotations(classes, annotated, notes)


def drawn(patients: Integers, seed: int, fraction: float, draw: int) -> NDArray[np.bool_]:
    """Return which rows belong to a fraction of the patients; smaller fractions are subsets of larger ones.

    Args:
        patients: (N,) patient of each row.
        seed: Seed of the draws.
        fraction: Fraction of the patients.
        draw: Number of the draw.
    """
    own, inverse = np.unique(patients, return_inverse=True)
    kept: NDArray[np.bool_] = nested_places(own, seed=seed, draw=draw)[inverse] < fraction_size(fraction, own.size)
    return kept


def _select(rows: MaskedRows, kept: NDArray[np.bool_]) -> MaskedRows:
    sources = tuple(source for source, keep in zip(rows.sources, kept.tolist(), strict=True) if keep)
    return replace(rows, split=rows.split.select(kept), sources=sources)


def _refuse_nothing_to_learn(splits: Mapping[str, Annotated], classes: Classes) -> None:
    """Refuse a class that train does not show, or val that shows none."""
    if unseen := unseen_classes(splits["train"].cases, classes):
        raise ManifestError(
            f"{splits['train'].rows.split.csv.name}: no mask of the {len(splits['train'])} training images shows"
            f" the class '{unseen[0]}';\nremove it from segmentation.classes, or raise segmentation.label_fraction"
        )
    if len(unseen_classes(splits["val"].cases, classes)) == len(classes):
        raise ManifestError(
            f"{splits['val'].rows.split.csv.name}: no mask of val shows a class, so the best epoch cannot be chosen"
        )


def unseen_classes(cases: Iterable[Case], classes: Classes) -> list[str]:
    """Return the names of the classes that no mask shows."""
    shown = {value for case in cases for value in case.values}
    return [name for number, name in enumerate(classes.names, 1) if number not in shown]


def _describe(splits: Mapping[str, Annotated], classes: Classes) -> str:
    counts = [
        f"{name} {len(own)} masks of {np.unique(own.rows.split.patients).size} patients" for name, own in splits.items()
    ]
    return f"{'; '.join(counts)}; classes {', '.join(classes.names)}"


def masks_digest(annotations: Annotations, names: Iterable[str]) -> str:
    """Return the SHA-256 of what defines the masks of some splits: their class numbers and the classes."""
    masks = [(name, [case.mask_sha256 for case in annotations.splits[name].cases]) for name in names]
    return hashlib.sha256(repr((annotations.classes, masks)).encode()).hexdigest()


def case_facts(settings: RunSettings, annotations: Annotations, encoder: Tree) -> CaseFacts:
    """Return the facts about the scores of each image; `encoder` is the `Provenance.record` of the run's encoder."""
    chosen = settings.segmentation
    scored = [annotations.splits[name] for name in annotations.scored]
    splits = {own.rows.split.name: CaseSplit(manifest_sha256=own.rows.split.sha256, images=len(own)) for own in scored}
    units = units_of([case.image for own in scored for case in own.cases])
    return CaseFacts(
        classes=annotations.classes.names, tolerance=chosen.tolerance, length_unit=units.length,
        volume_unit=units.volume, masks_sha256=masks_digest(annotations, annotations.scored), splits=splits,
        encoder=encoder,
    )  # fmt: skip


def units_of(images: Sequence[ImageGrid]) -> Units:
    """Return the units of scores: mm if every image states its spacing, else pixels for all, so that none are mixed."""
    if all(len(image.shape) == 3 for image in images):
        return OF_VOLUMES
    return OF_IMAGES if all(image.spacing for image in images) else IN_PIXELS
