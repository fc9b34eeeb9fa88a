"""Score frozen encoders against their controls: `medmoco evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.inputs import make_folder
from medmoco.evaluation.features.probes import standardise
from medmoco.evaluation.leakage.ledger import add_look, ledger_of
from medmoco.evaluation.metrics import auroc as metrics
from medmoco.evaluation.scoring.clinical import Clinical, clinical_records, describe_judgements, judge
from medmoco.evaluation.scoring.scoring import (
    Answer,
    Key,
    Scored,
    differences_of,
    draw_labels,
    knn_answers,
    label_targets,
    linear_answers,
    score_all,
)
from medmoco.evaluation.scoring.study import Study, begin
from medmoco.evaluation.scoring.table import MACRO, heading, layout
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, remove_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork, fold_probe
from medmoco.training.runlog import write_json

Record = dict[str, Any]

METHODS = ("linear", "knn")


class Evaluation(NamedTuple):
    """What `evaluate` found; its files hold the same."""

    records: list[Record]
    differences: list[Record]
    clinical: Clinical
    table: str


def evaluate(
    settings: RunSettings,
    encoders: Mapping[str, str],
    out: Path,
    *,
    test: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score encoders' frozen features, beside the untrained network and raw pixels.

    Writes scores.json, differences.json, operating.json, calibration.json, subgroups.json, predictions.csv (rows by
    number), table.txt, and the first encoder's probe as classifier/ to `out`.

    Args:
        settings: Of the data, the images' size and the protocol.
        encoders: Name -> run folder, weights file, or "random"; the first is the one asked about.
        out: Folder for the results; what an earlier evaluation wrote there is replaced.
        test: Look at the test split too, and note that in the run's ledger.
        log: Told what is being done.

    Raises:
        SettingsError: `out` cannot be written; and as `study.begin`.
        ManifestError: as `study.begin`.
        CheckpointError: the ledger cannot be written; and as `study.begin`.
        DataError: an image cannot be used.
    """
    make_folder(out)
    study = begin(settings, encoders, test=test, log=log)
    drawn = draw_labels(study.splits["train"], settings)
    answers: dict[Key, Answer] = {}
    for name in study.encoders:
        log(f"probes on {name}")
        answers |= linear_answers(study, name, drawn, settings)
        answers |= knn_answers(study, name, drawn, settings)
    scored = score_all(study, METHODS, study.encoders, answers, drawn, settings)
    first, *controls = study.encoders
    records = [entry.record for entry in scored.values()]
    differences = differences_of(scored, [(first, control) for control in controls])
    clinical = clinical_records(study.splits, answers, settings)
    notes = [*study.notes, _note_look(ledger_of(study.encoder, out), study, scored, settings)]
    width = study.features[first]["train"].shape[1]
    table = layout(records, differences, heading(study.source, width, study.splits, settings), notes)
    found = Evaluation(records, differences, clinical, table)
    _write(out, found, answers, study.splits)
    _save_probe(out / "classifier", study, answers, settings)
    return found


def _note_look(ledger: Path, study: Study, scored: Mapping[Key, Scored], settings: RunSettings) -> str:
    """Write down that the test split was looked at, before anybody sees the scores; say how often it was."""
    if "test" not in study.splits:
        return "the test split was not looked at; --test does, and is noted in the ledger"
    first = study.encoders[0]
    aurocs = {
        key.label: entry.record["auroc"]
        for key, entry in scored.items()
        if (key.split, key.method, key.encoder) == ("test", "linear", first) and key.label != MACRO
    }
    count = add_look(ledger, "evaluate", study.splits["test"], settings, study.encoders, aurocs)
    return f"look {count} at a test split, noted in {ledger.name}: a score is unbiased if nothing was chosen by it"


def _save_probe(folder: Path, study: Study, answers: Mapping[Key, Answer], settings: RunSettings) -> None:
    """Keep the first encoder's probe of all labels as a classifier that can be applied to other images.

    Where there is none, that of an earlier evaluation goes: it would not be that of the scores beside it.
    """
    first, split = study.encoders[0], study.scored[0]
    found = {key.label: answer for key, answer in answers.items() if key[1:] == (split, "linear", first)}
    if not found or settings.evaluate.label_fraction < 1:
        remove_classifier(folder)
        return
    standard, fits = standardise(study.features[first]), [answer.fits[0] for answer in found.values()]
    head = fold_probe(
        standard.mean, standard.scale, np.stack([fit.weights for fit in fits]), np.array([fit.bias for fit in fits])
    )
    judgements, aurocs = {}, {}
    for label, answer in found.items():
        targets = label_targets(study.splits[split], label)
        judgements[label] = judge(targets, answer.scores[0], settings.evaluate) if split == "val" else None
        aurocs[label] = metrics.auroc(targets, answer.scores[0]) if judgements[label] else None
    facts = describe_classifier(
        settings,
        tuple(found),
        trained="linear probe",
        encoder=study.source,
        val_auroc=aurocs,
        **describe_judgements(judgements, settings.evaluate),
    )
    save_classifier(folder, ClassifierNetwork(study.backbones[first], head, mirror=settings.evaluate.mirror), facts)


def _write(out: Path, found: Evaluation, answers: Mapping[Key, Answer], splits: Mapping[str, Split]) -> None:
    write_json(out / "scores.json", found.records)
    write_json(out / "differences.json", found.differences)
    for name, records in found.clinical._asdict().items():
        write_json(out / f"{name}.json", records)
    (out / "table.txt").write_text(found.table, encoding="utf-8")
    frames = []
    for key, answer in answers.items():
        split = splits[key.split]
        targets = label_targets(split, key.label)
        known = ~np.isnan(targets)
        for draw, scores in enumerate(answer.scores):
            columns = {"row": split.rows, "draw": draw, "target": targets, "score": scores}
            frames.append(pd.DataFrame({**key._asdict(), **columns})[known].astype({"target": int}))
    order = ["split", "row", "label", "method", "encoder", "draw", "target", "score"]
    table = pd.concat(frames)[order] if frames else pd.DataFrame(columns=order)
    table.to_csv(out / "predictions.csv", index=False, float_format="%.9g")
