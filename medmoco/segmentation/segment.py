"""Train and score a segmentation network: masks, encoder, training loop, run folder, comparison with another run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmoco.config import RunSettings, Tree
from medmoco.data.loading.workers import check_shared_memory, shared_memory_place
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import fingerprint
from medmoco.evaluation.records import FROM_SCRATCH
from medmoco.evaluation.scoring.trained import VAL_ONLY, Scoring, paired_names, record_test
from medmoco.evaluation.scoring.trained_records import SegmentationScore
from medmoco.segmentation.annotated.annotations import Annotations, case_facts, load_annotations, masks_digest
from medmoco.segmentation.annotated.cases import Case, truth_of
from medmoco.segmentation.drawing import choose, draw_contours
from medmoco.segmentation.learning import (
    Segmenting,
    crop_batches,
    dice_on_canvases,
    probabilities_of_cases,
    segment_cases,
)
from medmoco.segmentation.networks import SegmentationNetwork, create_network
from medmoco.segmentation.scores.metrics import IN_PIXELS, OF_IMAGES, Measures, Units, score_case, stack
from medmoco.segmentation.scores.records import CaseFacts, write_cases
from medmoco.segmentation.scores.records import read_cases as read_scores
from medmoco.segmentation.scores.scoring import Segmented, differences_of, layout, records_of, score
from medmoco.segmentation.segmenter import SEGMENTER, save_segmenter
from medmoco.training.agreement import count_sharing, on_first, together
from medmoco.training.context import RunContext, prepare_context
from medmoco.training.device import memory_explained
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from medmoco.training.early_stopping import Selection, SupervisedJob, check_parts, loop_settings, train_and_select
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_optimizer
from medmoco.training.run_folder import HARMLESS, NEW, StartMode, facts_of
from medmoco.training.runlog import explaining_disk_errors

_UNUSED = ("method.", "evaluate.", "finetune.", "detection.", "data.labels")
_USED = ("evaluate.where",)
_HARMLESS = tuple(key for key in HARMLESS if key not in ("evaluate.", "segmentation."))
_UNIT_NOTES = {
    OF_IMAGES: "distances are in mm by the pixel spacing in the DICOM headers; of a radiograph without calibration, at"
    " the detector",
    IN_PIXELS: "distances are in pixels, because not every scored image states its pixel spacing in a DICOM header",
}
_NAMES = {"random": FROM_SCRATCH}  # name of an encoder in the table, if it is not the kind of its source


def segment(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    scoring: Scoring = VAL_ONLY,
    start: StartMode = NEW,
    group: Group = ALONE,
    progress: bool = True,
) -> Segmented | None:
    """Train a segmentation network on the masks of train, keep the epoch that is best on val, and evaluate it.

    In addition to the usual files, the run folder contains the subfolder segmenter, cases.csv with the scores of each
    image, scores.json, differences.json and table.txt.

    Args:
        settings: `segmentation` defines the training; device, precision and the like come from `train`.
        encoder: Run folder, weights file, or "random" for training from scratch.
        out: Run folder.
        scoring: What to evaluate after training.
        start: What to do with an existing run in the folder.
        group: Processes that train together; the first one evaluates and writes files, the others return None.
        progress: Show messages and a progress bar on stderr; log.txt has the messages in any case.

    Raises:
        SettingsError: the encoder has no maps of several sizes, the size of crops does not fit them, or the folder
            contains another run.
        ManifestError: manifest or masks cannot be used, or test shares patients or images with the training data.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: also recorded in status.json.
    """
    context = prepare_context(settings_of_run(settings, out, group.size), group, progress=progress)
    settings = context.settings
    warnings: list[str] = []
    sharing = count_sharing(group, shared_memory_place())
    with together(group):
        annotations = load_annotations(settings, encoder, scoring.test)
        check_shared_memory(settings, settings.train.global_batch_size // group.size, sharing, views=1)
        loaded = load_encoder(encoder, settings, log=warnings.append, whole=False)
        source = loaded.provenance.record()
        facts_of_cases = case_facts(settings, annotations, source)
        other = _read_other(scoring.against, facts_of_cases, annotations)
        encoder_hash = fingerprint(loaded.module)[:16]
        model = create_network(loaded.module.of_last_stage(), settings, len(annotations.classes))
    scorer = _Scorer(context, annotations, model, encoder, source, facts_of_cases)
    cases = annotations.splits["train"].cases
    job = SupervisedJob(
        split=_repeated(annotations.splits["train"].rows.split, settings),
        facts=_facts(settings, annotations, f"{source['kind']}, SHA-256 {encoder_hash}"),
        create_state=lambda: _create_state(model, context),
        notices=annotations.notes,
        warnings=warnings,
        harmless=_HARMLESS,
        description=f"a decoder on {'the frozen ' * settings.segmentation.frozen}{settings.model.backbone} on"
        f" {context.device.type}, {context.precision} ({context.reason})",
        patience=settings.segmentation.patience,
        measure=scorer.measure,
        batches=lambda order, step: crop_batches(cases, settings, order, step, group.share),
        create_task=lambda: Segmenting(model, context),
    )
    with memory_explained(settings.train), ExitStack() as stack_:
        selection = train_and_select(stack_, context, job, start)
        return on_first(group, lambda: scorer.finish(selection, other, scoring), patiently=True)


def settings_of_run(settings: RunSettings, out: Path, processes: int = 1) -> RunSettings:
    """Return the settings of the training loop, in which those of `segmentation` replace those of `train`.

    Raises:
        SettingsError: they contradict each other.
    """
    chosen = settings.segmentation
    settings = loop_settings(settings, chosen)
    train = settings.train
    if train.compile:
        raise SettingsError("train.compile: segmentation networks cannot be compiled; set it to false")
    check_parts("segmentation", train, processes)
    data = settings.data.model_copy(update={"pack": None, "labels": {}})
    views = settings.views.model_copy(update={"size": chosen.size or settings.views.size})
    if data.dimensions == 2 and data.canvas_size < views.size:
        raise SettingsError(
            f"segmentation.size {views.size} is larger than data.canvas_size {data.canvas_size}, the longer side of the"
            " images\nthat the network sees; lower it, or raise data.canvas_size"
        )
    return settings.model_copy(update={"out": out, "data": data, "views": views})


# Training


def _repeated(split: Split, settings: RunSettings) -> Split:
    """Return a split whose rows are repeated until an epoch has enough steps; see `CropDataset`."""
    chosen = settings.segmentation
    repeats = max(1, math.ceil(chosen.least_steps * chosen.global_batch_size / len(split)))
    return split.select(np.tile(np.arange(len(split)), repeats))


def _create_state(model: SegmentationNetwork, context: RunContext) -> TrainState:
    join_batch_norm(model, context.group)
    context.place(model)
    return TrainState(model, create_optimizer(context.settings.train, model), context.scaler())


def _facts(settings: RunSettings, annotations: Annotations, encoder: str) -> Tree:
    """Return the facts to store in checkpoints; a run must be resumed with the same encoder, masks and val.

    Nothing of test is among them, so that a run can be scored on it later.
    """
    train, val = (annotations.splits[name].rows.split for name in ("train", "val"))
    facts = facts_of(settings, train)
    used = {key: value for key, value in facts["settings"].items() if key in _USED or not key.startswith(_UNUSED)}
    used |= {
        "encoder": encoder,
        "masks": f"SHA-256 {masks_digest(annotations, ['train'])[:16]}",
        "validation manifest": f"{len(val)} rows, SHA-256 {val.sha256[:16]}",
        "validation masks": f"SHA-256 {masks_digest(annotations, ['val'])[:16]}",
    }
    return {**facts, "settings": used}


# Scores


def _read_other(
    folder: Path | None, facts: CaseFacts, annotations: Annotations
) -> tuple[dict[str, Measures], str] | None:
    return read_scores(folder, facts, _rows_of(annotations)) if folder else None


def _rows_of(annotations: Annotations) -> dict[str, Any]:
    return {name: annotations.splits[name].rows.split.rows for name in annotations.scored}


@dataclass(frozen=True)
class _Scorer:
    """Evaluates the network on the splits, and writes the results."""

    context: RunContext
    annotations: Annotations
    model: SegmentationNetwork
    encoder: str
    source: dict[str, Any]
    facts: CaseFacts

    @property
    def settings(self) -> RunSettings:
        """Settings of the run."""
        return self.context.settings

    def measure(self, stop_asked: Callable[[], bool]) -> tuple[float, dict[str, float]]:
        """Return the Dice on the canvases of val, as a mean over classes and for each class."""
        context, cases = self.context, self.annotations.splits["val"].cases
        names = self.annotations.classes.names
        found = probabilities_of_cases(
            self.model, cases, context.settings, context.device, context.precision, stop_asked
        )
        by_class = dice_on_canvases(found, cases, len(names))
        mean = float(np.nanmean(by_class))
        return mean, {"val_dice": mean} | {
            f"val_dice/{name}": value for name, value in zip(names, by_class.tolist(), strict=True) if value == value
        }

    def finish(
        self, selection: Selection, other: tuple[dict[str, Measures], str] | None, scoring: Scoring
    ) -> Segmented:
        """Evaluate the weights of the best epoch, and write the network, the scores and the table."""
        best, out = selection.best, self.settings.out
        selection.session.log.info(f"done: {best.validated} epochs; epoch {best.epoch + 1} is the best on val")
        save_segmenter(
            out / SEGMENTER, self.model, self.annotations.classes, self.settings, encoder=self.source,
            val_dice=best.score,
        )  # fmt: skip
        measures = {name: self._measures(name) for name in self.annotations.scored}
        segmented = self._compare(measures, other, scoring)  # records a test evaluation before any score is written
        write_cases(out, measures, _rows_of(self.annotations), self.facts)
        with explaining_disk_errors():
            segmented.save(out)
        if scoring.pictures:
            self._draw(scoring.pictures)
        return segmented

    def _measures(self, name: str) -> Measures:
        """Return the scores of each image of a split, on the images' own grids."""
        annotated, classes = self.annotations.splits[name], self.annotations.classes
        predicted = segment_cases(self.model, annotated.cases, self.settings, self.context.device)
        return stack([
            score_case(
                numbers, truth_of(annotated, position, classes, self.settings.data), self._spacing(case),
                len(classes), self.settings.segmentation.tolerance,
            )
            for position, (numbers, case) in enumerate(zip(predicted, annotated.cases, strict=True))
        ])  # fmt: skip

    @property
    def _units(self) -> Units:
        return Units(self.facts.length_unit, self.facts.volume_unit)

    def _spacing(self, case: Case) -> tuple[float, ...]:
        spacing = case.image.spacing
        return spacing if spacing and self._units != IN_PIXELS else (1.0,) * len(case.image.shape)

    def _draw(self, pictures: Path) -> None:
        """Segment a few images again, as the masks of all would fill the memory, and draw their contours."""
        annotated = self.annotations.splits[self.annotations.scored[-1]]  # test, if it is scored
        positions = choose(annotated)
        cases = [annotated.cases[position] for position in positions]
        predicted = segment_cases(self.model, cases, self.settings, self.context.device)
        draw_contours(annotated, dict(zip(positions, predicted, strict=True)), self.settings.data, pictures)

    def _compare(
        self, measures: Mapping[str, Measures], other: tuple[dict[str, Measures], str] | None, scoring: Scoring
    ) -> Segmented:
        name, control = paired_names(self.source["kind"], other[1] if other else "", _NAMES)
        records, differences = self._records(measures, name), []
        if other:
            records += self._records(other[0], control, primary=False)
            for split in measures:
                differences += differences_of(
                    split, (measures[split], other[0][split]), self._patients(split), self.facts.classes,
                    (name, control), units=self._units, draws=self.settings.evaluate.bootstrap, seed=self.settings.seed,
                )  # fmt: skip
        notes = ["val also chose the epoch: only test is an unbiased score"]
        if self._units in _UNIT_NOTES:
            notes.insert(0, _UNIT_NOTES[self._units])
        if scoring.in_ledger:
            test = self.annotations.splits["test"].rows.split if scoring.test else None
            notes.append(record_test("segment", self.settings, self.encoder, test, records, "dice"))
        table = layout(records, differences, self._head(), notes, units=self._units)
        return Segmented(tuple(records), tuple(differences), table)

    def _patients(self, split: str) -> Any:
        return self.annotations.splits[split].rows.split.patients

    def _records(
        self, measures: Mapping[str, Measures], encoder: str, *, primary: bool = True
    ) -> list[SegmentationScore]:
        settings, classes = self.settings, self.facts.classes
        records: list[SegmentationScore] = []
        for split, own in measures.items():
            patients = self._patients(split)
            found = score(own, patients, classes, draws=settings.evaluate.bootstrap, seed=settings.seed)
            records += records_of(
                split, own, patients, classes, found, units=self._units, tolerance=settings.segmentation.tolerance,
                encoder=encoder, primary=primary,
            )  # fmt: skip
        return records

    def _head(self) -> Sequence[str]:
        chosen, train = self.settings.segmentation, self.annotations.splits["train"]
        what = ", ".join(f"{name} {value}" for name, value in self.source.items())
        return [
            f"{self.settings.model.backbone} ({what}){', frozen' * chosen.frozen}, crops of {self.settings.views.size}"
            f" {'voxels' if self.settings.data.dimensions == 3 else 'pixels'}, seed {self.settings.seed}",
            f"trained on {len(train)} masks of {np.unique(train.rows.split.patients).size} patients",
            f"95 % intervals: {self.settings.evaluate.bootstrap} draws of patients",
        ]
