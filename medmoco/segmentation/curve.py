"""`medmoco curve --segment`: label efficiency of segmentation, the scores by the fraction of patients with masks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.splits import fraction_size
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.encoder import Encoders, refuse_sizes, sources_of
from medmoco.evaluation.features.encoder_files import RANDOM
from medmoco.evaluation.features.inputs import make_folder
from medmoco.evaluation.leakage.ledger import ledger_of, note_on_test, record_test_evaluation
from medmoco.evaluation.records import FROM_SCRATCH
from medmoco.evaluation.results import Curve
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.scoring.trained import Scoring
from medmoco.evaluation.scoring.trained_records import SegmentationCurveDifference, SegmentationPoint
from medmoco.segmentation.annotated.annotations import (
    Annotations,
    case_facts,
    drawn,
    load_annotations,
    unseen_classes,
)
from medmoco.segmentation.scores.curve_points import Scored, Trained, differences_between, layout, points_of
from medmoco.segmentation.scores.records import CaseFacts, read_cases
from medmoco.segmentation.segment import segment, settings_of_run
from medmoco.training.run_folder import StartMode

RUNS = "segmentation"
"""Folder of the runs."""

Draws = Mapping[float, Sequence[NDArray[np.bool_]]]  # fraction -> which training images each draw has


@dataclass(frozen=True)
class _Study:
    """What all runs have in common.

    Attributes:
        settings: Settings, with all masks.
        sources: Sources of the encoders by name; the first is the primary one.
        splits: Rows with a mask, by split.
        facts: Facts about the scored images.
        draws: Draws of the training patients.
        notes: Notes for the reader.
    """

    settings: RunSettings
    sources: Mapping[str, str]
    splits: Mapping[str, Split]
    facts: CaseFacts
    draws: Draws
    notes: Sequence[str]

    @property
    def scored(self) -> Scored:
        """What is scored, and how."""
        settings, patients = self.settings, {name: self.splits[name].patients for name in self.facts.splits}
        bootstrap = settings.evaluate.bootstrap
        tolerance, unit = settings.segmentation.tolerance, self.facts.length_unit
        return Scored(self.facts.classes, patients, tolerance, unit, bootstrap, settings.seed)


def segmentation_curve(
    settings: RunSettings,
    encoders: Encoders,
    out: Path,
    *,
    draws: int = 5,
    test: bool = False,
    labels: Curve | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Train segmentation networks at every fraction in `evaluate.fractions`, from the encoders and from scratch.

    The patients of a smaller fraction are a subset of those of a larger one, and draws and crops are the same for all
    encoders. A finished run is not trained again, but scored again.

    Args:
        settings: Settings of the data and of `segmentation`, whose `label_fraction` and `label_draw` are not used.
        encoders: As of `curve`; "random" is training from scratch, which is always included.
        out: Folder in which to save the results and the runs.
        draws: Draws of patients, for fractions below 1.
        test: Evaluate on the test set too, which is recorded once, in the ledger of the primary encoder.
        labels: Results on labels, which the returned and saved results include.
        log: Receives progress messages.

    Raises:
        SettingsError: the name or the size of an encoder cannot be used, or a run in the folder has other settings.
        ManifestError: the masks of a draw lack a class, or as `segment`.
        MedmocoError: as `segment`.
    """
    make_folder(out)
    study = _begin(settings, _sources(encoders), draws, test)
    primary, *controls = study.sources
    points: list[SegmentationPoint] = []
    differences: list[SegmentationCurveDifference] = []
    for fraction in study.draws:
        trained = {name: _train(study, name, fraction, out, log) for name in study.sources}
        points += [point for name in trained for point in points_of(trained[name], study.scored)]
        differences += [
            found for name in controls for found in differences_between(trained[primary], trained[name], study.scored)
        ]
    classes, names = [*study.facts.classes, MACRO], list(study.sources)
    points.sort(key=lambda p: (p.split != "val", classes.index(p.label), names.index(p.encoder), p.fraction))
    recorded = _record_test(study, points, out)  # before any score is shown
    own = Curve((), (), "", folder=out, segmentation=tuple(points), segmentation_differences=tuple(differences))
    found = with_labels(replace(own, table=_table(study, own, recorded)), labels)
    found.save(out)
    return found


def with_labels(masks: Curve, labels: Curve | None) -> Curve:
    """Return the results on masks together with those on labels, if there are any."""
    if labels is None:
        return masks
    return replace(
        labels, table=f"{labels.table}\n{masks.table}", segmentation=masks.segmentation,
        segmentation_differences=masks.segmentation_differences,
    )  # fmt: skip


def _sources(encoders: Encoders) -> dict[str, str]:
    """Return the sources by name; the last one is training from scratch, whatever the name of "random" was."""
    sources = sources_of(encoders)
    refuse_sizes(sources.values(), "segmentation.size")
    if FROM_SCRATCH in sources:
        raise SettingsError(f"'{FROM_SCRATCH}' is the name of a control that is always trained; rename the encoder")
    return {name: source for name, source in sources.items() if source != RANDOM} | {FROM_SCRATCH: RANDOM}


def _begin(settings: RunSettings, sources: Mapping[str, str], draws: int, test: bool) -> _Study:
    """Read the masks, and draw the patients; a draw without masks of a class is refused before anything is trained."""
    chosen = settings.segmentation.model_copy(update={"label_fraction": 1.0})
    settings = settings.model_copy(update={"segmentation": chosen})
    annotations = load_annotations(settings_of_run(settings, settings.out), next(iter(sources.values())), test)
    patients = annotations.splits["train"].rows.split.patients
    amount = np.unique(patients).size
    # Fractions of few patients may be the same patients; the largest of them stands for all.
    sizes = {fraction_size(fraction, amount): fraction for fraction in sorted(set(settings.evaluate.fractions))}
    found = {
        fraction: [drawn(patients, settings.seed, fraction, draw) for draw in range(draws if size < amount else 1)]
        for size, fraction in sizes.items()
    }
    _refuse_unseen(annotations, found)
    left_out = sorted(set(settings.evaluate.fractions) - set(sizes.values()))
    notes = [
        f"{100 * fraction:g} % of {amount} patients are as many as the next fraction, and are left out"
        for fraction in left_out
    ]
    splits = {name: own.rows.split for name, own in annotations.splits.items()}
    facts = case_facts(settings, annotations, {})
    return _Study(settings, sources, splits, facts, found, [*annotations.notes, *notes])


def _refuse_unseen(annotations: Annotations, draws: Draws) -> None:
    train = annotations.splits["train"]
    for fraction, each in draws.items():
        for number, kept in enumerate(each):
            cases = [train.cases[place] for place in np.flatnonzero(kept)]
            if unseen := unseen_classes(cases, annotations.classes):
                raise ManifestError(
                    f"{train.rows.split.csv.name}: in draw {number} of {100 * fraction:g} % of the patients, no mask of"
                    f" the {len(cases)} training images shows the class '{unseen[0]}';\nremove this fraction and"
                    " smaller ones from evaluate.fractions, or the class from segmentation.classes"
                )


def _train(study: _Study, name: str, fraction: float, out: Path, log: Callable[[str], None]) -> Trained:
    """Train a network for each draw of a fraction, unless its run is finished, and return their scores."""
    measures = []
    rows = {split: study.splits[split].rows for split in study.facts.splits}
    for draw in range(len(study.draws[fraction])):
        log(f"{name}, masks of {100 * fraction:g} % of the patients, draw {draw}")
        update = {"label_fraction": fraction, "label_draw": draw}
        own = study.settings.model_copy(update={"segmentation": study.settings.segmentation.model_copy(update=update)})
        folder = out / RUNS / f"{re.sub(r'[^0-9A-Za-z-]+', '_', name)}_{100 * fraction:g}_percent_draw_{draw}"
        scoring = Scoring(test="test" in study.splits, in_ledger=False)
        segment(own, study.sources[name], folder, scoring=scoring, start=StartMode(resume=True))
        measures.append(read_cases(folder, study.facts, rows)[0])
    kept = study.draws[fraction]
    patients = study.splits["train"].patients
    return Trained(
        name, name == next(iter(study.sources)), fraction, float(np.mean([own.sum() for own in kept])),
        float(np.mean([np.unique(patients[own]).size for own in kept])), measures,
    )  # fmt: skip


def _record_test(study: _Study, points: Sequence[SegmentationPoint], out: Path) -> str:
    if "test" not in study.splits:
        return "test was not evaluated; --test does so and records it in the ledger"
    largest = max(study.draws)
    dice = {
        point.label: point.dice
        for point in points
        if (point.split, point.fraction) == ("test", largest) and point.primary and point.label != MACRO
    }
    ledger = ledger_of(next(iter(study.sources.values())), out)
    assert ledger  # `out` is given
    names = list(study.sources)
    count = record_test_evaluation(ledger, "curve", study.splits["test"], study.settings, names, dice=dice)
    return note_on_test(count, ledger)


def _table(study: _Study, found: Curve, recorded: str) -> str:
    settings, is_volumes = study.settings, study.settings.data.dimensions == 3
    size = settings.segmentation.size or settings.views.size
    head = (
        f"segmentation networks on {settings.model.backbone}, crops of {size} {'voxels' if is_volumes else 'pixels'},"
        f" seed {settings.seed}; scores are means over draws; 95 % intervals: {settings.evaluate.bootstrap} draws of"
        " patients"
    )
    blocks = layout(found.segmentation, found.segmentation_differences)
    notes = [found.verdict, *study.notes, "val also chose the epochs: only scores on test are unbiased", recorded]
    return "\n".join([*_wrapped([head]), "", *blocks, *_wrapped(notes)]) + "\n"


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, 118)]
