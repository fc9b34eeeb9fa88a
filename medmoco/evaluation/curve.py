"""`medmoco curve`: label efficiency, the scores by the fraction of labelled patients."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.data.manifest.overlap import patient_ids
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import Encoders, sources_of
from medmoco.evaluation.features.inputs import make_folder
from medmoco.evaluation.leakage.ledger import ledger_of, note_on_test, record_test_evaluation
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import UNTRAINED, CurveDifference, CurvePoint, Score
from medmoco.evaluation.results import Curve
from medmoco.evaluation.scoring.classes import score_classes
from medmoco.evaluation.scoring.forecast import forecast
from medmoco.evaluation.scoring.regression import evaluate_targets
from medmoco.evaluation.scoring.scoring import (
    Key,
    LabelDraws,
    Predictions,
    Scored,
    differences_of,
    draw_labels,
    predict_linear,
    score_all,
)
from medmoco.evaluation.scoring.study import Study, begin
from medmoco.evaluation.scoring.table import MACRO, class_blocks, forecast_blocks, name_width, regression_blocks, span
from medmoco.evaluation.supervised.finetune import finetune
from medmoco.evaluation.target_records import RIDGE, TRAINING_MEAN, ClassScore, RegressionScore
from medmoco.training.run_folder import StartMode
from medmoco.utils.files import PathLike


def curve(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike,
    *,
    draws: int = 5,
    finetune: bool = False,
    test: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Measure label efficiency: linear probes, and on request fine-tuning, at every fraction in `evaluate.fractions`.

    `medmoco.curve` describes arguments and errors.
    """
    settings, out = load(config), Path(out)
    if finetune and not settings.data.labels and not settings.evaluate.classes:
        raise SettingsError("--finetune has no labels to learn; set data.labels or evaluate.classes, or leave it out")
    make_folder(out)
    study = begin(settings, sources_of(encoders), test=test, out=out, log=log)
    methods = ["linear", *(["finetune"] if finetune else [])]
    shares: list[Curve] = []
    measured: dict[float, dict[Key, Scored]] = {}
    for fraction in sorted(set(settings.evaluate.fractions)):
        log(f"labels of {100 * fraction:g} % of the patients")
        chosen = settings.evaluate.model_copy(update={"label_fraction": fraction, "label_draws": draws})
        share = settings.model_copy(update={"evaluate": chosen})
        label_draws = draw_labels(study.splits["train"], share)
        predictions: dict[Key, Predictions] = {}
        for name in study.encoders:
            predictions |= predict_linear(study, name, label_draws, share)
        if finetune:
            predictions |= _predict_finetuned(study, share, out, log)
        found, measured[fraction] = _score(study, methods, predictions, label_draws, share)
        shares.append(found)
    forecasts, needed = forecast(measured, study.encoders[0], settings.seed)
    found = replace(_join(shares, study, methods, settings), forecast=tuple(forecasts), labels_needed=tuple(needed))
    if test:
        found = replace(found, table=found.table + _record_test(study, found, settings, out))
    found = replace(found, folder=out)
    if found.verdict:
        found = replace(found, table=f"{found.table}\n{textwrap.fill(found.verdict, 118)}\n")
    split = shown_split(found.points)
    ahead = [each for each in forecasts if each.split == split]
    if lines := forecast_blocks(ahead, [each for each in needed if each.split == split], _drawn(study)):
        found = replace(found, table="\n".join([found.table, *lines]) + "\n")
    found.save(out)
    return found


def _join(shares: Sequence[Curve], study: Study, methods: Sequence[str], settings: RunSettings) -> Curve:
    """Return the results of all fractions together, in the order of the table, with the table."""
    chosen = settings.evaluate
    labels = [*study.splits["train"].label_names, MACRO]

    def place(record: CurvePoint | ClassScore | RegressionScore, labels: Sequence[str]) -> tuple[float, ...]:
        return (
            study.scored.index(record.split), labels.index(record.label), [*methods, RIDGE].index(record.method),
            [*study.encoders, TRAINING_MEAN].index(record.encoder), record.fraction,
        )  # fmt: skip

    points = sorted(chain(*(share.points for share in shares)), key=lambda point: place(point, labels))
    differences = tuple(chain(*(share.differences for share in shares)))
    classes = sorted(
        chain(*(share.classes for share in shares)), key=lambda score: place(score, [chosen.classes or ""])
    )
    regression = sorted(chain(*(share.regression for share in shares)), key=lambda score: place(score, chosen.targets))
    errors = tuple(chain(*(share.regression_differences for share in shares)))
    blocks = [*class_blocks(classes, fractions=True), *regression_blocks(regression, errors, fractions=True)]
    return Curve(
        tuple(points), differences, _layout(points, differences, blocks, study),
        classes=tuple(classes), regression=tuple(regression), regression_differences=errors,
    )  # fmt: skip


def _predict_finetuned(
    study: Study, share: RunSettings, out: Path, log: Callable[[str], None]
) -> dict[Key, Predictions]:
    """Train end to end from the primary encoder and from scratch, once for each draw, all labels together."""
    chosen = share.evaluate
    sources = {study.encoders[0]: study.encoder, UNTRAINED: "random"}
    scores: dict[Key, list[Floats]] = {}
    for name, source in sources.items():
        for draw in range(chosen.label_draws if chosen.label_fraction < 1 else 1):
            log(f"fine-tuning {name}, draw {draw}")
            how = share.finetune.model_copy(
                update={"classes": chosen.classes, "label_fraction": chosen.label_fraction, "label_draw": draw}
            )
            folder = out / "finetune" / f"{name}_{100 * chosen.label_fraction:g}_percent_draw_{draw}"
            resumed = StartMode(resume=True)
            own = share.model_copy(update={"finetune": how})
            found = finetune(own, source, folder, splits=study.scored, start=resumed)
            assert found  # there is only one process
            for split in study.scored:
                for column, label in enumerate(found.labels):
                    scores.setdefault(Key(label, split, "finetune", name), []).append(found.scores[split][:, column])
    return {key: Predictions(np.stack(draws), [], []) for key, draws in scores.items()}


def _score(
    study: Study,
    methods: Sequence[str],
    predictions: Mapping[Key, Predictions],
    draws: Mapping[str, LabelDraws],
    share: RunSettings,
) -> tuple[Curve, dict[Key, Scored]]:
    """Score one fraction of labels; for each method, the primary encoder is compared with the others."""
    primary = study.encoders[0]
    points: list[CurvePoint] = []
    differences: list[CurveDifference] = []
    classes: list[ClassScore] = []
    measured: dict[Key, Scored] = {}
    for method in methods:
        encoders = study.encoders if method == "linear" else list(dict.fromkeys([primary, UNTRAINED]))
        scored = score_all(study, [method], encoders, predictions, draws, share)
        measured |= scored
        fraction = share.evaluate.label_fraction
        points += [_point(entry.score, fraction) for entry in scored.values()]
        compared = differences_of(scored, [(primary, other) for other in encoders if other != primary])
        kept = set(CurveDifference.model_fields)
        differences += [CurveDifference(**found.model_dump(include=kept), fraction=fraction) for found in compared]
        classes += score_classes(study, [method], encoders, predictions, share)
    errors = evaluate_targets(study, share)
    found = Curve(
        tuple(points), tuple(differences), "",
        classes=tuple(classes), regression=errors.scores, regression_differences=errors.differences,
    )  # fmt: skip
    return found, measured


def _point(score: Score, fraction: float) -> CurvePoint:
    counts = {"n_train": score.n_train, "n_train_patients": score.n_train_patients}
    fields = score.model_dump(include=CurvePoint.model_fields.keys() - counts.keys())
    fields |= {name: float(np.mean(values)) if values else None for name, values in counts.items()}
    fields = {name: value for name, value in fields.items() if name != "preprocessing" or value}
    return CurvePoint(**fields, fraction=fraction)


def _layout(
    points: Sequence[CurvePoint], differences: Sequence[CurveDifference], others: Sequence[str], study: Study
) -> str:
    """Return a block of text per split and label, with a line per method, encoder and fraction, and other blocks."""
    primary, labels = study.encoders[0], {point.label for point in points}
    drawn = _drawn(study)
    against = {(d.split, d.label, d.method, d.control, d.fraction): d for d in differences}
    width = name_width(study.encoders)
    lines: list[str] = []
    for (split, label), block in groupby(points, lambda point: (point.split, point.label)):
        if label == MACRO and len(labels) == 2:
            continue  # the mean over one label repeats it
        lines += [
            f"{split}: {label}",
            f"  {'method':<9}{'encoder':<{width}}{'labels':<8}{drawn:<10}{'draws':<7}{'AUROC':<8}"
            f"{'95 % interval':<18}{primary} minus it, 95 % interval",
        ]
        for (method, encoder), cells in groupby(block, lambda point: (point.method, point.encoder)):
            for number, point in enumerate(cells):
                name = f"{method:<9}{encoder:<{width}}" if number == 0 else ""
                difference = against.get((split, label, method, encoder, point.fraction))
                lines.append(f"  {name:<{9 + width}}{_cells(point, difference)}".rstrip())
        lines.append("")
    return "\n".join([*lines, *others, *study.notes]) + "\n"


def _drawn(study: Study) -> str:
    return "images" if patient_ids(study.splits["train"]) is None else "patients"


def _cells(point: CurvePoint, difference: CurveDifference | None) -> str:
    patients = "" if point.n_train_patients is None else f"{point.n_train_patients:.0f}"
    share = f"{100 * point.fraction:g} %"
    text = f"{share:<8}{patients:<10}{point.draws:<7}"
    if point.undefined:
        return text + point.undefined
    text += f"{point.auroc:<8.3f}{span(point.auroc_low, point.auroc_high):<18}"
    if difference and difference.difference is not None:
        text += f"{difference.difference:+.3f}  {span(difference.low, difference.high, '+')}"
    return text


def _record_test(study: Study, found: Curve, settings: RunSettings, out: Path) -> str:
    largest = max(settings.evaluate.fractions)
    aurocs = {
        point.label: point.auroc
        for point in found.points
        if (point.split, point.method, point.fraction) == ("test", "linear", largest)
        and point.primary and point.label != MACRO
    }  # fmt: skip
    r2 = {
        score.label: score.r2
        for score in found.regression
        if (score.split, score.fraction) == ("test", largest) and score.primary
    }
    ledger = ledger_of(study.encoder, out)
    assert ledger  # `out` is given
    count = record_test_evaluation(ledger, "curve", study.splits["test"], settings, study.encoders, auroc=aurocs, r2=r2)
    return f"{note_on_test(count, ledger)}\n"
