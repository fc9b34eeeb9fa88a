"""Folders as the other commands leave them, made from synthetic scores, for the tests of reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings, as_tree, to_yaml
from medmoco.evaluation.metrics.auroc import auroc, average_precision, bootstrap_auroc, interval
from medmoco.utils.files import sha256_of

Record = dict[str, Any]
Floats = NDArray[np.float64]

LABELS = ("Pneumonia", "Viral")
SKILL = {"run": 1.8, "untrained": 0.9, "pixels": 1.1}
COMMAND = "medmoco evaluate"
PATIENTS = 160


def make_run(
    folder: Path, *, seed: int = 0, labels: tuple[str, ...] = LABELS, finetuned: bool = False, targets: bool = False
) -> Path:
    """Write a whole run: training, evaluation, curve, external test, ledger, audit, card; on request, targets."""
    folder.mkdir(parents=True)
    manifest = _manifest(folder.with_name(f"{folder.name}-data"), labels, seed)
    _training(folder, manifest, labels, seed, finetuned)
    _evaluation(folder / "evaluation", labels, ("val", "test"), seed)
    _curve(folder / "curve", labels, seed)
    _external(folder / "external", labels, seed)
    if targets:
        _targets(folder, labels)
    _lines(folder / "ledger.jsonl", [
        {
            "time": f"2026-11-2{day}T08:30:00Z", "command": "evaluate", "manifest_sha256": "0" * 64,
            "labels": list(labels), "where": None, "rows": 200, "encoders": list(SKILL),
            "auroc": dict.fromkeys(labels, 0.87),
        }
        for day in (1, 3)
    ])  # fmt: skip
    check = folder.with_name(f"{folder.name}-check")
    check.mkdir()
    (check / "report.txt").write_text("560 rows: train 320 of 160 patients\nwarning  1  constant image  train 12\n")
    (check / "rows.csv").write_text(
        "split,row,severity,fault,detail,Path\ntrain,12,warning,constant image,,images/secret-12.png\n"
    )
    (folder / "quarantine.csv").write_text("row,reason\n17,file cut off\n40,file cut off\n", newline="")
    (folder / "export").mkdir()
    (folder / "export" / "MODEL_CARD.md").write_text(
        "# resnet18, pretrained with medmoco\n\n**This is not a medical device.**\n\n## Scores\n\n"
        "| label | AUROC |\n|---|---|\n| Viral | 0.88 |\n\n```python\nnet = timm.create_model('resnet18')\n```\n"
        "<script>alert(1)</script> ![x](http://example.org/x.png) [y](http://example.org)\n"
    )
    return folder


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, allow_nan=False))


def _lines(file: Path, records: list[Record]) -> None:
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def _manifest(folder: Path, labels: tuple[str, ...], seed: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for at, (split, patients) in enumerate({"train": PATIENTS, "val": 60, "test": 100}.items()):
        names = np.repeat([f"patient-{at}-{number}" for number in range(patients)], 2)
        pd.DataFrame({
            "Path": [f"images/secret-{number}.png" for number in range(len(names))],
            "PatientID": names,
            "Sex": np.repeat(generator.choice(["F", "M"], patients), 2),
            "Age": [f"{age:03d}Y" for age in generator.integers(20, 90, len(names))],
            **{label: generator.choice(["0", "1", "-1", ""], len(names), p=[0.5, 0.4, 0.05, 0.05]) for label in labels},
        }).to_csv(folder / f"{split}.csv", index=False)  # fmt: skip
    return folder


def _training(folder: Path, manifest: Path, labels: tuple[str, ...], seed: int, finetuned: bool) -> None:
    tree = {
        "out": str(folder), "seed": seed, "model": {"backbone": "resnet18"},
        "data": {"manifest": str(manifest), "root": f"{manifest}/{{split}}", "labels": list(labels)},
    }  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(as_tree(RunSettings.model_validate(tree))))
    _write(folder / "environment.json", {
        "python": "3.11.7", "device": "x86_64", "cpu": "AVX2", "precision": "fp32", "threads": 1, "processes": 1,
        "manifest_sha256": sha256_of(manifest / "train.csv"),
        "libraries": {"medmoco": "0.1.0", "torch": "2.14.1", "timm": "1.0.31"},
    })  # fmt: skip
    _write(folder / "status.json", {"state": "done", "step": 1000, "steps": 1000, "exit_code": 0, "message": ""})
    records: list[Record] = []
    for step in range(10, 1001, 10):
        share = step / 1000
        if finetuned:
            record = {"step": step, "epoch": step // 100, "loss": 0.7 * math.exp(-share)}
        else:
            record = {
                "step": step, "epoch": step // 100, "loss": 7.0 - 2.5 * share + 0.1 * math.sin(step + seed),
                "chance": math.log(1025), "accuracy": 0.4 * share, "positive_similarity": 0.8,
                "embedding_std": 0.9, "effective_rank": 20 + 5 * share, "lr": 0.03, "images_per_second": 40.0,
                "waiting": 0.01,
            }  # fmt: skip
        records.append(record)
        if step % 200 == 0:
            records.append({"step": step, "val_auroc" if finetuned else "knn_auroc": 0.6 + 0.2 * share})
    _lines(folder / "metrics.jsonl", records)
    if finetuned:
        _write(folder / "classifier" / "classifier.json", {"trained": "fine-tuned", "labels": list(labels)})


def _cohort(label: int, size: int, seed: int) -> tuple[Floats, dict[str, Floats], NDArray[np.int64]]:
    """Return targets, scores by encoder, and patients of two images each."""
    generator = np.random.default_rng((seed, label, size))
    patients = np.arange(size) // 2
    targets = (generator.random(size) < 0.4).astype(float)
    shared = generator.normal(size=size)
    scores = {
        name: skill * (targets - 0.5) + 0.5 * shared + generator.normal(size=size) for name, skill in SKILL.items()
    }
    return targets, scores, patients


def _auroc(targets: Floats, scores: Floats, patients: NDArray[np.int64]) -> Record:
    low, high, _ = interval(bootstrap_auroc(targets, scores, patients, draws=200, seed=0))
    return {"auroc": auroc(targets, scores), "auroc_low": low, "auroc_high": high}


def _evaluation(folder: Path, labels: tuple[str, ...], splits: tuple[str, ...], seed: int) -> None:
    folder.mkdir(parents=True)
    scores: list[Record] = []
    differences, operating, calibration, subgroups, predictions = [], [], [], [], []
    for split in splits:
        for at, label in enumerate(labels):
            targets, answers, patients = _cohort(at, 200, seed + (split == "val"))
            for method in ("linear", "knn"):
                for encoder, answer in answers.items():
                    key = {"label": label, "split": split, "method": method, "encoder": encoder}
                    scores.append(key | _score(targets, answer, patients))
                    predictions.append(pd.DataFrame({
                        "split": split, "row": np.arange(2, 202), "label": label, "method": method, "encoder": encoder,
                        "draw": 0, "target": targets.astype(int), "score": answer,
                    }))  # fmt: skip
                    if encoder != "run":
                        own = _auroc(targets, answers["run"], patients)["auroc"]
                        gap = own - scores[-1]["auroc"]
                        differences.append(key | {
                            "encoder": "run", "control": encoder, "difference": gap, "low": gap - 0.04,
                            "n": 200, "n_positive": 80, "n_patients": 100,
                            "high": gap + 0.04, "p": 0.01, "p_holm": 0.02, "delong_p": None,
                        })  # fmt: skip
                    if method == "linear":
                        operating += [key | point(targets, answer, wanted) for wanted in (0.9, 0.95)]
                        calibration.append(key | {
                            "kind": "platt", "before": calibrated(targets, answer),
                            "after": calibrated(targets, 1.3 * answer - 0.4),
                        })  # fmt: skip
                        subgroups += [key | group for group in groups(targets, answer, patients)]
    for name, records in (("scores", scores), ("differences", differences), ("operating", operating),
                          ("calibration", calibration), ("subgroups", subgroups)):  # fmt: skip
        _write(folder / f"{name}.json", records)
    pd.concat(predictions).to_csv(folder / "predictions.csv", index=False)
    (folder / "table.txt").write_text("as printed\n")
    _write(folder / "classifier" / "classifier.json", {"trained": "linear probe", "labels": list(labels)})


def _score(targets: Floats, scores: Floats, patients: NDArray[np.int64]) -> Record:
    precision = average_precision(targets, scores)
    return _auroc(targets, scores, patients) | {
        "n": len(targets), "n_positive": int(targets.sum()), "n_patients": int(np.unique(patients).size),
        "average_precision": precision, "ap_low": precision - 0.05, "ap_high": min(1, precision + 0.05),
        "delong_low": None, "delong_high": None, "undefined": None, "flag": None, "note": None, "where": None,
        "label_fraction": 1.0, "draws": 1, "bootstrap": 1000, "bootstrap_left_out": 0, "seed": 0,
        "leakage": {"pretraining": {"patients": 0, "images": 0}, "train": {"patients": 0, "images": 0}},
    }  # fmt: skip


def point(targets: Floats, scores: Floats, wanted: float) -> Record:
    """Return an operating point."""
    threshold = float(np.quantile(scores[targets == 0], wanted))
    told = scores >= threshold
    tp, fp = int((told & (targets == 1)).sum()), int((told & (targets == 0)).sum())
    fn, tn = int((targets == 1).sum()) - tp, int((targets == 0).sum()) - fp
    shares = {
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
    }
    ends = {
        f"{name}_{end}": value + way for name, value in shares.items() for end, way in (("low", -0.05), ("high", 0.03))
    }
    return (
        {"specificity_wanted": wanted, "threshold": threshold, "tp": tp, "fp": fp, "tn": tn, "fn": fn} | shares | ends
    )


def calibrated(targets: Floats, scores: Floats) -> Record:
    """Return a calibration record with five bins, the last empty."""
    predicted = 1 / (1 + np.exp(-scores))
    bins: list[Record] = []
    for at in range(5):
        inside = (predicted >= at / 5) & (predicted < (at + 1) / 5)
        is_empty = at == 4 or not inside.any()
        observed = None if is_empty else float(targets[inside].mean())
        bins.append({
            "low": at / 5, "high": (at + 1) / 5, "n": 0 if is_empty else int(inside.sum()),
            "predicted": None if is_empty else float(predicted[inside].mean()), "observed": observed,
            "observed_low": None if observed is None else max(0, observed - 0.1),
            "observed_high": None if observed is None else min(1, observed + 0.1),
        })  # fmt: skip
    brier = float(((predicted - targets) ** 2).mean())
    return {"n": len(targets), "brier": brier, "ece": 0.04, "bins": bins, "slope": 1.1, "intercept": -0.1}


def groups(targets: Floats, scores: Floats, patients: NDArray[np.int64]) -> list[Record]:
    """Return subgroups, one of them too small to be shown."""
    half = len(targets) // 2
    parts = {("Sex", "F"): slice(0, half), ("Sex", "M"): slice(half, None), ("Age", "18 to 40"): slice(0, half)}
    found = []
    for (column, group), rows in parts.items():
        chosen = (targets[rows], scores[rows], patients[rows])
        found.append({"column": column, "group": group} | _counts(*chosen) | _auroc(*chosen) | {"undefined": None})
    few = {"auroc": None, "auroc_low": None, "auroc_high": None, "undefined": "hidden (fewer than 20 patients)"}
    tiny = _counts(targets[:7], scores[:7], patients[:7])
    return [*found, {"column": "Age", "group": "80 and above"} | tiny | few]


def _counts(targets: Floats, scores: Floats, patients: NDArray[np.int64]) -> Record:
    return {"n": len(targets), "n_positive": int(targets.sum()), "n_patients": int(np.unique(patients).size)}


def _curve(folder: Path, labels: tuple[str, ...], seed: int) -> None:
    rows = [
        {
            "label": label, "split": "test", "method": method, "encoder": encoder, "fraction": fraction, "draws": 3,
            "n_train": 320 * fraction, "n_train_patients": 160 * fraction,
            "auroc": 0.6 + 0.1 * skill + 0.05 * math.log10(100 * fraction) - 0.03 * (method == "finetune"),
            "auroc_low": 0.55 + 0.1 * skill, "auroc_high": 0.72 + 0.1 * skill, "average_precision": 0.6,
            "undefined": None, "n": 200, "n_positive": 80, "n_patients": 100,
        }
        for label in labels
        for encoder, skill in SKILL.items()
        for method in (("linear",) if encoder == "pixels" else ("linear", "finetune"))
        for fraction in (0.01, 0.05, 0.1, 0.5, 1.0)
    ]  # fmt: skip
    rows[0] |= {"auroc": None, "auroc_low": None, "auroc_high": None, "undefined": "undefined (no positives in train)"}
    _write(folder / "curve.json", rows)
    _write(folder / "curve_differences.json", [
        {
            "label": label, "split": "test", "method": "linear", "encoder": "run", "control": control, "fraction": 0.1,
            "difference": 0.07, "low": 0.02, "high": 0.11, "p": 0.004, "p_holm": 0.012,
        }
        for label in labels
        for control in ("untrained", "pixels")
    ])  # fmt: skip


def _external(folder: Path, labels: tuple[str, ...], seed: int) -> None:
    side = {"auroc": 0.87, "low": 0.82, "high": 0.91, "n": 200, "n_positive": 80, "n_patients": 100}
    _write(folder / "external.json", {
        label: {
            "internal": side, "external": side | {"auroc": 0.8, "low": 0.74, "high": 0.85},
            "drop": 0.07, "drop_low": 0.01, "drop_high": 0.13,
        }
        for label in labels
    })  # fmt: skip
    targets, answers, patients = _cohort(0, 200, seed)
    key = {"split": "external", "method": "linear", "encoder": "run"}
    _write(folder / "operating.json", [
        {"label": label, **key, **point(targets, answers["run"], 0.9)} for label in labels
    ])  # fmt: skip
    _write(folder / "subgroups.json", [
        {"label": label, **key, **group} for label in labels for group in groups(targets, answers["run"], patients)
    ])  # fmt: skip


def _targets(folder: Path, classes: tuple[str, ...]) -> None:
    """Write the accuracies of classes, and the errors of an age, of the evaluation and the curve."""
    key = {"split": "test", "n": 200, "n_patients": 100}
    reports = [{"name": name, "precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 100} for name in classes]
    counts = [[75 if row == column else 25 for column in range(len(classes))] for row in range(len(classes))]
    _write(folder / "evaluation" / "classes.json", [
        {
            **key, "label": "Finding", "method": method, "encoder": encoder, "top1": 0.75, "top1_low": 0.7,
            "top1_high": 0.8, "balanced_accuracy": 0.74, "balanced_accuracy_low": 0.69, "balanced_accuracy_high": None,
            "classes": reports, "confusion": counts,
        }
        for method in ("linear", "knn")
        for encoder in SKILL
    ])  # fmt: skip
    scores = [
        {
            **key, "label": "Age", "method": "ridge", "encoder": encoder, "label_fraction": fraction,
            "r2": 0.3 * skill + 0.01 * fraction, "r2_low": 0.2, "r2_high": 0.7, "mae": 8.5, "mae_low": 7.0,
            "mae_high": 10.25, "draws": 3,
        }
        for encoder, skill in {**SKILL, "training mean": 0.0}.items()
        for fraction in (1.0, 0.1)
    ]  # fmt: skip
    _write(folder / "evaluation" / "regression.json", [row for row in scores if row["label_fraction"] == 1])
    _write(folder / "curve" / "regression.json", scores)
    _write(folder / "evaluation" / "regression_differences.json", [
        {
            "label": "Age", "split": "test", "method": "ridge", "encoder": "run", "metric": metric, "control": control,
            "difference": -3.25, "low": -12.5, "high": 1.0, "p": 0.01, "p_holm": 0.03,
        }
        for control in ("untrained", "pixels", "training mean")
        for metric in ("r2", "mae")
    ])  # fmt: skip
    with (folder / "evaluation" / "predictions.csv").open("a") as file:
        file.write("test,2,Age,ridge,run,0,63.5,60.25\n")
