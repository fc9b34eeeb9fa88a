"""`medmoco evaluate`: score frozen encoders and their controls."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import Encoders, sources_of
from medmoco.evaluation.features.inputs import make_folder
from medmoco.evaluation.features.probes import standardise
from medmoco.evaluation.leakage.ledger import ledger_of, note_on_test, record_test_evaluation
from medmoco.evaluation.metrics.auroc import auroc
from medmoco.evaluation.record_files import PREDICTIONS
from medmoco.evaluation.results import Evaluation
from medmoco.evaluation.scoring.classes import score_classes
from medmoco.evaluation.scoring.clinical import describe_operating_points, fit_operating_points, score_clinically
from medmoco.evaluation.scoring.regression import Regression, evaluate_targets
from medmoco.evaluation.scoring.scoring import (
    Key,
    Predictions,
    Scored,
    differences_of,
    draw_labels,
    label_targets,
    predict_knn,
    predict_linear,
    score_all,
)
from medmoco.evaluation.scoring.study import Study, begin
from medmoco.evaluation.scoring.table import MACRO, heading, layout
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, remove_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork, fold_probe
from medmoco.evaluation.target_records import RIDGE
from medmoco.evaluation.verdict import verdicts
from medmoco.utils.files import PathLike

METHODS = ("linear", "knn")


def evaluate(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike | None = None,
    *,
    test: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score the frozen features of encoders on labels, classes or numbers, next to an untrained network and raw pixels.

    Args:
        config: Settings of the data, the image size and the protocol, see `load_config`.
        encoders: Run, export, import, weights file, "random", or what `load_encoder` returned; or several by name, of
            which the first is the primary one, which the others are compared with. The others have the preprocessing of
            their training, and may have a size of their own, as in "imported@224" (docs/evaluation.md).
        out: Folder in which to save the results, and the primary encoder's linear probe as classifier/, in place of
            those of an earlier evaluation; without it nothing is saved.
        test: Evaluate on the test set too, which is recorded in the ledger of the run, or in `out` without a run.
        log: Receives progress messages.

    Returns:
        Scores with 95 % intervals by patient, differences between encoders, operating points and calibration.

    Raises:
        SettingsError: labels or encoders cannot be scored, a run was trained on images prepared differently, or there
            is no folder for results or ledger.
        ManifestError: the manifest cannot be used, or test shares patients or images with the training data.
        CheckpointError: an encoder cannot be loaded, or the ledger cannot be written.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> evaluation = medmoco.evaluate("config.yaml", {"ours": "runs/phantoms"})
        >>> evaluation.summary().columns.tolist()
        ['ours', 'untrained', 'pixels']
        >>> figure = evaluation.plot_curve("Opacity")
    """
    settings, sources, out = load(config), sources_of(encoders), Path(out) if out else None
    _check_ledger(sources, out, test)
    if out:
        make_folder(out)
    study = begin(settings, sources, test=test, out=out, log=log)
    draws = draw_labels(study.splits["train"], settings)
    predictions: dict[Key, Predictions] = {}
    for name in study.encoders:
        log(f"probes on {name}")
        predictions |= predict_linear(study, name, draws, settings)
        predictions |= predict_knn(study, name, draws, settings)
    scored = score_all(study, METHODS, study.encoders, predictions, draws, settings)
    primary, *others = study.encoders
    scores = tuple(entry.score for entry in scored.values())
    differences = differences_of(scored, [(primary, other) for other in others])
    clinical = score_clinically(study.splits, predictions, settings)
    classes = score_classes(study, METHODS, study.encoders, predictions, settings)
    regression = evaluate_targets(study, settings)
    notes = [*study.notes, _record_test(ledger_of(study.encoder, out), study, scored, regression, settings)]
    head = heading(study.source.record(), study.features[primary]["train"].shape[1], study.splits, settings)
    table = layout(scores, differences, head, notes, classes, regression.scores, regression.differences)
    table += "".join(f"\n{textwrap.fill(str(verdict), 118)}\n" for verdict in verdicts(scores, differences))
    frame = _as_frame({**predictions, **regression.predictions}, study)
    found = Evaluation(
        scores, tuple(differences), *clinical, frame, table, out,
        classes=tuple(classes), regression=regression.scores, regression_differences=regression.differences,
    )  # fmt: skip
    if out:
        found.save(out)
        _save_probe(out / "classifier", study, predictions, settings)
    return found


def _check_ledger(encoders: Mapping[str, str], out: Path | None, test: bool) -> None:
    """Refuse a test evaluation that cannot be recorded, before any work is done."""
    primary = next((source for source in encoders.values() if source != "random"), "random")
    if test and not ledger_of(primary, out):
        raise SettingsError(
            "a test evaluation is recorded in the ledger of the encoder's run, but this encoder is not a run folder;\n"
            "give a folder for the results (out) to record it there"
        )


def _record_test(
    ledger: Path | None, study: Study, scored: Mapping[Key, Scored], regression: Regression, settings: RunSettings
) -> str:
    """Record a test evaluation in the ledger before any score is shown; return the note about it."""
    if "test" not in study.splits:
        return "the test set was not evaluated; --test evaluates on it, and records that in the ledger"
    assert ledger  # checked before
    aurocs = {
        key.label: entry.score.auroc
        for key, entry in scored.items()
        if (key.split, key.method) == ("test", "linear") and entry.score.primary and key.label != MACRO
    }
    r2 = {score.label: score.r2 for score in regression.scores if score.split == "test" and score.primary}
    count = record_test_evaluation(
        ledger, "evaluate", study.splits["test"], settings, study.encoders, auroc=aurocs, r2=r2
    )
    return note_on_test(count, ledger)


def _save_probe(folder: Path, study: Study, predictions: Mapping[Key, Predictions], settings: RunSettings) -> None:
    """Save the linear probe of the primary encoder as a classifier, which can be applied to other images.

    If there is none, the classifier of an earlier evaluation is removed, since it does not match the scores.
    """
    primary, split = study.encoders[0], study.scored[0]
    found = {key.label: own for key, own in predictions.items() if key[1:] == (split, "linear", primary)}
    if not found or settings.evaluate.label_fraction < 1:
        remove_classifier(folder)
        return
    head = fold_probe(standardise(study.features[primary]), [own.fits[0] for own in found.values()])
    points, aurocs = {}, {}
    for label, own in found.items():
        targets = label_targets(study.splits[split], label)
        points[label] = fit_operating_points(targets, own.scores[0], settings.evaluate) if split == "val" else None
        aurocs[label] = auroc(targets, own.scores[0]) if points[label] else None
    facts = describe_classifier(
        settings,
        tuple(found),
        trained="linear probe",
        encoder=study.source.record(),
        val_auroc=aurocs,
        exclusive=settings.evaluate.classes is not None,
        **describe_operating_points(points, settings.evaluate),
    )
    network = ClassifierNetwork(
        study.backbones[primary], head, mirror=settings.evaluate.mirror, exclusive=facts["exclusive"]
    )
    save_classifier(folder, network, facts)


def _as_frame(predictions: Mapping[Key, Predictions], study: Study) -> pd.DataFrame:
    """Return the scores of all rows with a known label, class or value."""
    frames = []
    for key, own in predictions.items():
        split = study.splits[key.split]
        targets = study.values[key.label][key.split] if key.method == RIDGE else label_targets(split, key.label)
        known = ~np.isnan(targets)
        for draw, scores in enumerate(own.scores):
            columns = {"row": split.rows, "draw": draw, "target": targets, "score": scores}
            frames.append(pd.DataFrame({**key._asdict(), **columns})[known])
    order = list(PREDICTIONS)
    return pd.concat(frames, ignore_index=True)[order] if frames else pd.DataFrame(columns=order)
