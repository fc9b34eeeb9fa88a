"""The two checklists that papers of this kind are asked for, filled in as far as a machine can.

Source: TRIPOD+AI, Collins et al. 2024 (doi:10.1136/bmj-2023-078378); CLAIM 2024 update, Tejani et al. 2024
(doi:10.1148/ryai.240300). Items are named by their number and a few words of ours, not quoted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medmoco.reporting.blocks import Block, Fold, Section, Table, Text, count, number, several
from medmoco.reporting.runs import Run

OPEN = "To be filled in by the authors"

_TRIPOD = {
    "1": "Title: development or evaluation of a prediction model, population, outcome",
    "2": "Abstract, by TRIPOD+AI for Abstracts",
    "3a": "Background: clinical context and rationale",
    "3b": "Background: target population, place in the care pathway, intended users",
    "3c": "Background: known health inequalities between groups",
    "4": "Objectives: development, evaluation or both",
    "5a": "Data: sources of development and evaluation data, representativeness",
    "5b": "Data: dates of collection",
    "6a": "Participants: setting, number and location of centres",
    "6b": "Participants: eligibility",
    "6c": "Participants: treatments received",
    "7": "Data preparation and quality checks",
    "8a": "Outcome: definition, time, how assessed",
    "8b": "Outcome: who assessed it, where this needs judgement",
    "8c": "Outcome: blinding of its assessment",
    "9a": "Predictors: choice before modelling",
    "9b": "Predictors: definition, how and when measured",
    "9c": "Predictors: who assessed them, where this needs judgement",
    "10": "Sample size: how it was arrived at",
    "11": "Missing data: how handled",
    "12a": "Analysis: how the data were used and partitioned",
    "12b": "Analysis: how predictors were transformed",
    "12c": "Analysis: kind of model, building, tuning, internal validation",
    "12d": "Analysis: heterogeneity between clusters, such as hospitals",
    "12e": "Analysis: measures and plots of performance",
    "12f": "Analysis: model updating, such as recalibration",
    "12g": "Analysis: how predictions were calculated in the evaluation",
    "13": "Class imbalance: methods and recalibration after them",
    "14": "Fairness: approaches and rationale",
    "15": "Model output: probabilities or classes, thresholds and their rationale",
    "16": "Differences between development and evaluation data",
    "17": "Ethical approval and consent",
    "18a": "Open science: funding",
    "18b": "Open science: conflicts of interest",
    "18c": "Open science: protocol",
    "18d": "Open science: registration",
    "18e": "Open science: availability of data",
    "18f": "Open science: availability of code",
    "19": "Patient and public involvement",
    "20a": "Results: flow of participants, with and without the outcome",
    "20b": "Results: characteristics of participants",
    "20c": "Results: predictors compared between development and evaluation data",
    "21": "Results: participants and outcome events in each analysis",
    "22": "Results: the full model, so that others can predict with it",
    "23a": "Results: performance with intervals, also in subgroups",
    "23b": "Results: heterogeneity of performance between clusters",
    "24": "Results: model updating",
    "25": "Discussion: interpretation",
    "26": "Discussion: limitations",
    "27a": "Usability: poor or missing input at use",
    "27b": "Usability: interaction and expertise that users need",
    "27c": "Usability: next steps, applicability, generalisability",
}

_CLAIM = {
    "1": "Title or abstract: identified as AI, with the kind of technology",
    "2": "Abstract: structured summary",
    "3": "Background: scientific and clinical, intended use and role",
    "4": "Aims, objectives, hypotheses",
    "5": "Prospective or retrospective",
    "6": "Goal of the study",
    "7": "Data sources",
    "8": "Inclusion and exclusion criteria",
    "9": "Preprocessing",
    "10": "Selection of data subsets",
    "11": "De-identification",
    "12": "Missing data",
    "13": "Image acquisition",
    "14": "Reference standard: how obtained",
    "15": "Reference standard: rationale",
    "16": "Reference standard: source of the annotations",
    "17": "Annotation of the test set",
    "18": "Variability between and within raters",
    "19": "How data were assigned to partitions",
    "20": "Level at which partitions are disjoint",
    "21": "Intended sample size",
    "22": "Model: inputs, outputs, layers",
    "23": "Software, with versions",
    "24": "Initialisation of parameters",
    "25": "Training: augmentation, settings, number of models",
    "26": "How the final model was selected",
    "27": "Ensembling",
    "28": "Metrics of performance",
    "29": "Significance and uncertainty",
    "30": "Robustness or sensitivity analysis",
    "31": "Explainability",
    "32": "Evaluation on internal data",
    "33": "Test on external data",
    "34": "Clinical trial registration",
    "35": "Patients or examinations included and excluded",
    "36": "Demographic and clinical characteristics of each partition",
    "37": "Performance with uncertainty",
    "38": "Diagnostic performance and its precision",
    "39": "Failure analysis",
    "40": "Limitations",
    "41": "Implications for practice, intended use",
    "42": "Protocol or further technical detail",
    "43": "Availability of software, model, data",
    "44": "Funding and other support",
}

# Facts that are known to a machine -> the items that ask for them.
_ITEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "partitions": (("12a", "21"), ("19", "20")),
    "counts": (("20a",), ("35",)),
    "described": (("20b",), ("36",)),
    "quality": (("7",), ("8",)),
    "preprocessing": (("12b",), ("9",)),
    "missing": (("11",), ("12",)),
    "model": (("12c",), ("22",)),
    "start": ((), ("24",)),
    "training": ((), ("25",)),
    "selection": ((), ("26",)),
    "ensemble": ((), ("27",)),
    "measures": (("12e",), ("28",)),
    "uncertainty": ((), ("29",)),
    "labels": ((), ("10",)),
    "recalibration": (("12f", "24"), ()),
    "thresholds": (("15",), ()),
    "predictions": (("12g", "22"), ()),
    "scores": (("23a",), ("32", "37", "38")),
    "subgroups": (("14",), ()),
    "external": (("16",), ("33",)),
    "identifiers": ((), ("11",)),
    "software": (("18f",), ("23", "43")),
    "tests": ((), ("42",)),
}


def appendix_section(runs: list[Run]) -> Section:
    """Fill in both checklists for each run."""
    blocks: list[Block] = [
        Text(
            "Filled in from the files of the run. It does not replace the checklists: items are in our words, and "
            "what a machine cannot know, and whether what it knows is enough, is for the authors to say."
        ),
        Text("TRIPOD+AI: Collins et al., BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378."),
        Text("CLAIM 2024 update: Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, "
             "doi:10.1148/ryai.240300."),
    ]  # fmt: skip
    sections = []
    for run in runs:
        known = _known(run)
        lists = [
            Fold(
                f"{name} for {run.name}: {several(filled, 'item')} of {len(items)} filled in, at least in part", [table]
            )
            for at, (name, items) in enumerate({"TRIPOD+AI": _TRIPOD, "CLAIM 2024": _CLAIM}.items())
            for table, filled in [_fill(f"{name}, {run.name}", items, known, at)]
        ]
        sections.append(Section(run.name, lists))
    return Section("Appendix: reporting checklists", blocks, sections)


def _fill(caption: str, items: Mapping[str, str], known: Mapping[str, str], at: int) -> tuple[Table, int]:
    answers: dict[str, list[str]] = {item: [] for item in items}
    for fact, asked in _ITEMS.items():
        for item in asked[at]:
            answers[item] += [known[fact]] if fact in known else []
    rows = [[item, topic, " ".join(answers[item]) or OPEN] for item, topic in items.items()]
    table = Table(caption, ["item", "topic", "what the run says"], rows, words=True)
    return table, sum(bool(texts) for texts in answers.values())


def _known(run: Run) -> dict[str, str]:
    """Return sentences about a run by fact; a fact that is not known is left out."""
    facts = {**_of_data(run), **_of_model(run), **_of_scores(run)}
    return {fact: text for fact, text in facts.items() if text}


def _of_data(run: Run) -> dict[str, str]:
    chosen, facts = run.settings, {}
    if run.splits:
        parts = []
        for name, split in run.splits.items():
            patients = np.unique(split.patients).size
            of = f" of {several(patients, 'patient')}" if "PatientID" in split.table else ""
            parts.append(f"{name} {several(len(split), 'image')}{of}")
        facts["counts"] = f"Images: {'; '.join(parts)}. Labels by split stand under Data."
        if all("PatientID" in split.table for split in run.splits.values()):
            names = list(run.splits)
            pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
            shared = sum(np.intersect1d(run.splits[a].patients, run.splits[b].patients).size for a, b in pairs)
            level = "no patient is in two of them" if not shared else f"{several(shared, 'patient')} in two of them"
            facts["partitions"] = f"{', '.join(names)} as the manifest has them; {level}."
        known = [name for name in ("Sex", "Age", "ViewPosition") if name in run.splits["train"].table]
        facts["described"] = f"{', '.join(known)}: see Data." if known else ""
    faults = sum(amount for (severity, _), amount in run.faults.items() if severity == "fault")
    audited = "Every file was decoded and compared before training" if run.audit is not None else ""
    facts["quality"] = f"{audited}; {several(faults, 'faulty row')} found." if audited else ""
    left_out = sum(run.quarantine.values())
    if left_out:
        facts["quality"] += f" {several(left_out, 'training image')} could not be read and left out."
    policies = {key.removeprefix("data.labels."): value for key, value in chosen.items() if "data.labels." in key}
    if policies:
        words = "; ".join(f"{key.replace('.', ', ')} cells: {value}" for key, value in policies.items())
        facts["missing"] = f"By label: {words}. Rows left out for one label still count for others."
    facts["identifiers"] = (
        "Files of the run hold no patient id and no path; how the images were de-identified before is for the authors."
    )
    fraction = next((score.label_fraction for score in run.evaluation.scores or ()), None)
    if fraction is not None:
        facts["labels"] = f"Labels of {100 * fraction:g} % of the training patients were used for scoring."
    return facts


def _of_model(run: Run) -> dict[str, str]:
    chosen, libraries = run.settings, run.environment.get("libraries")
    size, canvas = chosen.get("views.size"), chosen.get("data.canvas_size")
    network = chosen.get("model.backbone")
    kind = "fine-tuned end to end on labels" if run.is_finetuned else "pretrained by momentum contrast without labels"
    channels = chosen.get("data.channels", "gray")
    gray, window = channels == "gray", chosen.get("data.window")
    levels = f"One gray channel, window {window}" if gray else f"Channels: {channels}"
    taken = "one input channel" if gray else f"input of {channels} channels"
    facts = {
        "preprocessing": f"{levels}, longer side {canvas} pixels, "
        f"{chosen.get('data.bit_depth')} bits, then {size} x {size}; minus {chosen.get('views.mean')}, divided by "
        f"{chosen.get('views.std')}.",
        "model": f"{network} with {taken}, {size} x {size} pixels, {kind}.",
        "start": f"{_start(run)}, seed {chosen.get('seed')}.",
        "training": f"{chosen.get('train.epochs')} epochs, batch {chosen.get('train.global_batch_size')}, "
        f"{chosen.get('train.optimizer')}, learning rate {chosen.get('train.lr')}, "
        f"augmentation recipe {chosen.get('views.recipe')}; every value stands under Settings. One model per run.",
        "ensemble": "None: one network.",
    }
    if isinstance(libraries, dict):
        versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
        facts["software"] = f"Python {run.environment.get('python')}, {versions}. medmoco is Apache-2.0."
    if run.is_finetuned:
        facts["selection"] = "The epoch with the best validation AUROC."
    elif run.evaluation.scores:
        facts["selection"] = "The last step of pretraining; the strength of the linear probe by validation AUROC."
    return facts


def _start(run: Run) -> str:
    if run.is_finetuned:
        return "Weights of another run or file where one was given"
    return "Weights from a file" if run.has_weights else "Random weights"


def _of_scores(run: Run) -> dict[str, str]:
    found, facts = run.evaluation, {}
    if found.scores:
        measures = ["AUROC", "average precision"]
        measures += ["sensitivity, specificity, PPV and NPV at thresholds from validation"] if found.operating else []
        measures += ["calibration curve, expected calibration error, Brier score"] if found.calibration else []
        facts["measures"] = f"{'; '.join(measures)}."
        facts["uncertainty"] = (
            f"95 % intervals from {count(found.scores[0].bootstrap)} draws of patients; paired differences on the same"
            " draws" + (", p values adjusted by Holm." if any(d.p_holm for d in found.differences or ()) else ".")
        )
        own = [
            score
            for score in found.scores
            if (score.split, score.encoder) == (found.split, found.primary) and score.auroc is not None
        ]
        best = [score for score in own if score.method == "linear"] or own
        parts = [f"{score.label} {_auroc(score.auroc, score.auroc_low, score.auroc_high)}" for score in best[:8]]
        facts["scores"] = f"AUROC on {found.split}: {'; '.join(parts)}. More under Scores." if parts else ""
    if found.operating:
        requested = sorted({number(point.specificity_wanted, 2) for point in found.operating})
        facts["thresholds"] = f"Probabilities; thresholds reach specificity {', '.join(requested)} on validation."
    if found.calibration:
        kinds = sorted({score.kind for score in found.calibration})
        facts["recalibration"] = f"Scores became probabilities by {', '.join(kinds)} scaling, fitted on validation."
    if run.classifier:
        facts["predictions"] = "classifier.safetensors with classifier.json; `medmoco predict` applies them."
    if found.subgroups:
        columns = ", ".join(dict.fromkeys(group.column for group in found.subgroups))
        facts["subgroups"] = f"Scored apart by {columns}; see Subgroups. Nothing was done to change what they show."
    if run.external:
        parts = [
            f"{label}: {number(score.external.auroc)} there, {number(score.internal.auroc)} here"
            for label, score in run.external.items()
        ]
        facts["external"] = f"AUROC of the frozen classifier: {'; '.join(parts)}."
    if run.ledger is not None:
        facts["tests"] = f"The test split was scored {several(len(run.ledger), 'time')}; see Test evaluations."
    return facts


def _auroc(value: float | None, low: float | None, high: float | None) -> str:
    return f"{number(value)} ({number(low)} to {number(high)})"
