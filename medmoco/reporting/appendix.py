"""The two reporting checklists for prediction models and AI in imaging, filled in from the files of a run.

templates/checklists.csv lists their items, each with the fact about a run that answers it, if there is one.

Source: TRIPOD+AI, Collins et al. 2024 (doi:10.1136/bmj-2023-078378); CLAIM 2024 update, Tejani et al. 2024
(doi:10.1148/ryai.240300). Items are paraphrased, not quoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.evaluation.records import Protocol
from medmoco.reporting.blocks import (
    Block,
    Fold,
    Section,
    Table,
    Text,
    by_run,
    count,
    number,
    several,
    with_interval,
)
from medmoco.reporting.runs import Run
from medmoco.reporting.trained.results import SEGMENTATION, Trained

_TRAINED = {
    "encoder": "pretrained by momentum contrast without labels", "classifier": "fine-tuned end to end on labels"
}  # fmt: skip
OPEN = "To be filled in by the authors"
CHECKLISTS = pd.read_csv(Path(__file__).parent / "templates/checklists.csv", dtype=str, keep_default_na=False)


def appendix_section(runs: Sequence[Run]) -> Section:
    """Fill in both checklists for each run."""
    blocks: list[Block] = [
        Text(
            "Filled in from the files of the run. This does not replace the checklists: the items are paraphrased, and "
            "the authors must complete them and decide whether what was filled in is sufficient."
        ),
        Text("TRIPOD+AI: Collins et al., BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378."),
        Text("CLAIM 2024 update: Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, "
             "doi:10.1148/ryai.240300."),
    ]  # fmt: skip
    parts = {
        run.name: [_fill(run, str(name), items, facts) for name, items in CHECKLISTS.groupby("checklist", sort=False)]
        for run in runs
        for facts in [{**_of_data(run), **_of_model(run), **_of_scores(run)}]
    }
    return by_run("Reporting checklists", parts, blocks)


def _fill(run: Run, name: str, items: pd.DataFrame, facts: dict[str, str]) -> Fold:
    answers = [facts.get(fact, "") for fact in items["fact"]]
    rows = [[*item, answer or OPEN] for item, answer in zip(items[["item", "topic"]].to_numpy(), answers, strict=True)]
    filled = several(sum(map(bool, answers)), "item")
    table = Table(f"{name}, {run.name}", ["item", "topic", "from the files of the run"], rows, words=True)
    return Fold(f"{name} for {run.name}: {filled} of {len(items)} filled in, at least in part", [table])


# Sentences about a run, by fact; a fact that is missing or empty is unknown.


def _of_data(run: Run) -> dict[str, str]:
    chosen, facts = run.settings, {}
    if run.splits:
        parts = []
        for name, split in run.splits.items():
            patients = np.unique(split.patients).size
            of = f" of {several(patients, 'patient')}" if "PatientID" in split.table else ""
            parts.append(f"{name} {several(len(split), 'image')}{of}")
        facts["counts"] = f"Images: {'; '.join(parts)}. Data has the labels of each split."
        if all("PatientID" in split.table for split in run.splits.values()):
            pairs = combinations(run.splits.values(), 2)
            shared = sum(np.intersect1d(one.patients, other.patients).size for one, other in pairs)
            level = f"{several(shared, 'patient')} in two of them" if shared else "no patient is in two of them"
            facts["partitions"] = f"{', '.join(run.splits)} as defined in the manifest; {level}."
        known = [name for name in ("Sex", "Age", "ViewPosition") if name in run.splits["train"].table]
        facts["described"] = f"{', '.join(known)}: see Data." if known else ""
    faults = sum(amount for (severity, _), amount in run.faults.items() if severity == "fault")
    checked = f"`medmoco check` decoded and compared all files and found {several(faults, 'faulty row')}."
    facts["quality"] = "" if run.audit is None else checked
    left_out = sum(run.quarantine.values())
    if left_out:
        facts["quality"] += f" {several(left_out, 'training image')} could not be read and were replaced."
    policies = {
        key.removeprefix("data.labels."): value
        for key, value in chosen.items()
        if "data.labels." in key and key.endswith((".uncertain", ".missing"))
    }
    if policies:
        words = "; ".join(f"{key.replace('.', ', ')} cells: {value}" for key, value in policies.items())
        facts["missing"] = f"By label: {words}. A row excluded for one label still counts for the others."
    facts["identifiers"] = (
        "The report contains no patient ids or paths. The authors must describe how the images were de-identified."
    )
    fraction = next((score.label_fraction for score in run.evaluation.scores or ()), None)
    if fraction is not None:
        facts["labels"] = f"Labels of {100 * fraction:g} % of the training patients were used for scoring."
    return facts


def _of_model(run: Run) -> dict[str, str]:
    chosen, libraries = run.settings, run.environment.get("libraries")
    size, canvas = chosen.get("views.size"), chosen.get("data.canvas_size")
    network = chosen.get("model.backbone")
    kind = _TRAINED.get(run.kind, f"under a {run.kind}, trained on the annotated images")
    channels = chosen.get("data.channels", "gray")
    gray, window = channels == "gray", chosen.get("data.window")
    levels = f"One gray channel, window {window}" if gray else f"Channels: {channels}"
    taken = "one input channel" if gray else f"{channels} input channels"
    facts = {
        "preprocessing": f"{levels}, longer side {canvas} pixels, "
        f"{chosen.get('data.bit_depth')} bits, then {size} x {size}; minus {chosen.get('views.mean')}, divided by "
        f"{chosen.get('views.std')}.",
        "model": f"{network} with {taken}, {size} x {size} pixels, {kind}.",
        "start": f"{_start(run)}, seed {chosen.get('seed')}.",
        "training": f"{chosen.get('train.epochs')} epochs, batch {chosen.get('train.global_batch_size')}, "
        f"{chosen.get('train.optimizer')}, learning rate {chosen.get('train.lr')}, "
        f"augmentation recipe {chosen.get('views.recipe')}; Settings has all values. One model per run.",
        "ensemble": "None: a single network.",
    }
    if isinstance(libraries, dict):
        versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
        facts["software"] = f"Python {run.environment.get('python')}, {versions}. medmoco is Apache-2.0."
    if run.trained:
        metric = "Dice" if run.trained.network == SEGMENTATION else "average precision"
        facts["selection"] = f"The epoch with the best validation {metric}."
    elif run.is_finetuned:
        facts["selection"] = "The epoch with the best validation AUROC."
    elif run.evaluation.scores:
        step = (
            "step of pretraining with the best kNN AUROC on validation"
            if run.scores_best
            else "last step of pretraining"
        )
        stopped = ", which ended when the kNN AUROC on validation no longer improved" if run.ended_early else ""
        facts["selection"] = f"The {step}{stopped}; the regularisation of the linear probe by validation AUROC."
    return facts


def _start(run: Run) -> str:
    if run.kind != "encoder":
        return "Weights from another run or a file, if the user gave one"
    return "Weights from a file" if run.has_weights else "Random weights"


def _of_scores(run: Run) -> dict[str, str]:
    found, facts = run.evaluation, {}
    protocols: Sequence[Protocol] = found.scores or found.regression or ()
    if protocols:
        measures = ["AUROC", "average precision"] if found.scores else []
        measures += ["top-1 and balanced accuracy, confusion matrix, precision, recall, F1"] if found.classes else []
        measures += ["R2 and mean absolute error of numeric targets"] if found.regression else []
        measures += (
            ["sensitivity, specificity, PPV and NPV at thresholds chosen on validation"] if found.operating else []
        )
        measures += ["calibration curve, expected calibration error, Brier score"] if found.calibration else []
        facts["measures"] = f"{'; '.join(measures)}."
        holm = ", p values adjusted by Holm" if any(d.p_holm for d in found.differences or ()) else ""
        facts["uncertainty"] = (
            f"95 % intervals from {count(protocols[0].bootstrap)} bootstrap draws of patients; paired differences "
            f"on the same draws{holm}."
        )
        own = [
            score
            for score in found.scores or ()
            if (score.split, score.encoder) == (found.split, found.primary) and score.auroc is not None
        ]
        best = [score for score in own if score.method == "linear"] or own
        parts = [f"{score.label} {with_interval(score.auroc, score.auroc_low, score.auroc_high)}" for score in best[:8]]
        facts["scores"] = f"AUROC on {found.split}: {'; '.join(parts)}. Scores has all of them." if parts else ""
    if run.trained and run.trained.scores:
        facts |= _of_trained(run.trained)
    if found.operating:
        requested = sorted({number(point.specificity_wanted, 2) for point in found.operating})
        facts["thresholds"] = f"Probabilities; thresholds for a specificity of {', '.join(requested)} on validation."
    if found.calibration:
        kinds = sorted({score.kind for score in found.calibration})
        facts["recalibration"] = f"Probabilities were calibrated by {', '.join(kinds)} scaling, fitted on validation."
    if run.classifier:
        facts["predictions"] = "classifier.safetensors with classifier.json; `medmoco predict` applies the classifier."
    if found.subgroups:
        columns = ", ".join(dict.fromkeys(group.column for group in found.subgroups))
        facts["subgroups"] = f"Evaluated separately by {columns}; see Subgroups. No fairness correction was applied."
    if run.external:
        parts = [
            f"{label}: {number(score.external.auroc)} external, {number(score.internal.auroc)} internal"
            for label, score in run.external.items()
        ]
        facts["external"] = f"AUROC of the frozen classifier: {'; '.join(parts)}."
    if run.ledger is not None:
        facts["tests"] = f"The test split was scored {several(len(run.ledger), 'time')}; see Test-set evaluations."
    return facts


def _of_trained(trained: Trained) -> dict[str, str]:
    is_segmentation = trained.network == SEGMENTATION
    measures = (
        "Dice, surface Dice, 95th percentile of the Hausdorff distance, bias, limits of agreement and concordance of"
        " volumes, by class"
        if is_segmentation
        else "Average precision, FROC and AUROC by label"
    )
    draws = count(trained.scores[0].bootstrap)
    metric, name = ("dice", "Dice") if is_segmentation else ("ap", "Average precision")
    parts = [
        f"{score.label} {with_interval(score.value, score.low, score.high)}"
        for score in trained.scores
        if (score.split, score.metric) == (trained.split, metric) and score.primary
    ]
    return {
        "measures": f"{measures}.",
        "uncertainty": f"95 % intervals from {draws} bootstrap draws of patients; differences on the same draws.",
        "scores": f"{name} on {trained.split}: {'; '.join(parts)}. The section on scores has all of them.",
    }
