"""How many labels an encoder saves: scores at growing shares of labelled patients, `medmoco curve`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medmoco.config import RunSettings
from medmoco.evaluation.features.inputs import make_folder
from medmoco.evaluation.leakage.ledger import add_look, ledger_of
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.scoring.scoring import (
    Answer,
    Key,
    LabelDraws,
    differences_of,
    draw_labels,
    linear_answers,
    score_all,
)
from medmoco.evaluation.scoring.study import UNTRAINED, Study, begin
from medmoco.evaluation.scoring.table import MACRO, name_width, span
from medmoco.evaluation.supervised.finetune import finetune
from medmoco.plotting.figures import curve_figure, save
from medmoco.training.run_folder import StartMode
from medmoco.training.runlog import write_json

Record = dict[str, Any]


class Curve(NamedTuple):
    """What `curve` found; its files hold the same."""

    rows: list[Record]
    differences: list[Record]
    table: str


def curve(
    settings: RunSettings,
    encoders: Mapping[str, str],
    out: Path,
    *,
    draws: int,
    finetuned: bool = False,
    test: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Score linear probes, and where wanted fine-tuning, at every share of `evaluate.fractions`.

    A smaller share's patients are among a larger one's, and draws are the same for all encoders and methods. Writes
    curve.csv, curve.json, curve_differences.json, a figure for each split and label, and table.txt to `out`.

    Args:
        settings: Of the data and the protocol; `evaluate.label_fraction` and `evaluate.label_draws` are not used.
        encoders: Name -> run folder, weights file, or "random"; the first is the one asked about.
        out: Folder for the results. Fine-tuning runs are kept in it, and one that is there is gone on with.
        draws: Of patients, for shares below 1.
        finetuned: Train the first encoder, and the network from nothing, end to end on the same draws.
        test: Look at the test split too, and note that in the run's ledger.
        log: Told what is being done.

    Raises:
        MedmocoError: as `evaluate` and `finetune` do.
    """
    make_folder(out)
    study = begin(settings, encoders, test=test, log=log)
    methods = ["linear", *(["finetune"] if finetuned else [])]
    rows: list[Record] = []
    differences: list[Record] = []
    for fraction in sorted(set(settings.evaluate.fractions)):
        log(f"labels of {100 * fraction:g} % of the patients")
        chosen = settings.evaluate.model_copy(update={"label_fraction": fraction, "label_draws": draws})
        share = settings.model_copy(update={"evaluate": chosen})
        drawn = draw_labels(study.splits["train"], share)
        answers: dict[Key, Answer] = {}
        for name in study.encoders:
            answers |= linear_answers(study, name, drawn, share)
        if finetuned:
            answers |= _finetune_answers(study, share, out, log)
        found, compared = _score(study, methods, answers, drawn, share)
        rows += found
        differences += compared
    rows.sort(key=lambda row: _place(row, study, methods))
    table = _layout(rows, differences, study)
    if test:
        table += _note_look(study, rows, settings, out)
    write_json(out / "curve.json", rows)
    write_json(out / "curve_differences.json", differences)
    pd.DataFrame(rows).to_csv(out / "curve.csv", index=False, float_format="%.6g")
    (out / "table.txt").write_text(table, encoding="utf-8")
    for split in study.scored:
        for label in settings.data.labels:
            save(curve_figure(rows, label, split), out / f"curve_{split}_{re.sub(r'[^0-9A-Za-z]+', '_', label)}.svg")
    return Curve(rows, differences, table)


def _finetune_answers(study: Study, share: RunSettings, out: Path, log: Callable[[str], None]) -> dict[Key, Answer]:
    """Train end to end from the first encoder and from nothing, once for each draw, all labels together."""
    chosen = share.evaluate
    sources = {study.encoders[0]: study.encoder, UNTRAINED: "random"}
    scores: dict[Key, list[Floats]] = {}
    for name, source in sources.items():
        for draw in range(chosen.label_draws if chosen.label_fraction < 1 else 1):
            log(f"fine-tuning {name}, draw {draw}")
            how = share.finetune.model_copy(update={"label_fraction": chosen.label_fraction, "label_draw": draw})
            folder = out / "finetune" / f"{name}_{100 * chosen.label_fraction:g}_percent_draw_{draw}"
            resumed = StartMode(resume=True)
            found = finetune(
                share.model_copy(update={"finetune": how}), source, folder, splits=study.scored, start=resumed
            )
            assert found  # this process is alone
            for split in study.scored:
                for column, label in enumerate(found.labels):
                    scores.setdefault(Key(label, split, "finetune", name), []).append(found.scores[split][:, column])
    return {key: Answer(np.stack(draws), [], []) for key, draws in scores.items()}


def _score(
    study: Study,
    methods: Sequence[str],
    answers: Mapping[Key, Answer],
    drawn: Mapping[str, LabelDraws],
    share: RunSettings,
) -> tuple[list[Record], list[Record]]:
    """Return the rows and the differences of one share; each method compares the first encoder with the others."""
    first = study.encoders[0]
    rows: list[Record] = []
    differences: list[Record] = []
    for method in methods:
        encoders = study.encoders if method == "linear" else list(dict.fromkeys([first, UNTRAINED]))
        scored = score_all(study, [method], encoders, answers, drawn, share)
        rows += [_row(entry.record) for entry in scored.values()]
        compared = differences_of(scored, [(first, control) for control in encoders if control != first])
        keep = ("label", "split", "method", "encoder", "control", "difference", "low", "high", "p", "p_holm")
        differences += [
            {"fraction": record["label_fraction"], **{name: record[name] for name in keep}} for record in compared
        ]
    return rows, differences


def _row(record: Record) -> Record:
    keep = ("label", "split", "method", "encoder")
    scores = ("auroc", "auroc_low", "auroc_high", "average_precision", "undefined", "n", "n_positive", "n_patients")
    return {
        **{name: record[name] for name in keep},
        "fraction": record["label_fraction"],
        "draws": record["draws"],
        "n_train": _mean(record.get("n_train")),
        "n_train_patients": _mean(record.get("n_train_patients")),
        **{name: record[name] for name in scores},
    }


def _mean(values: Sequence[int] | None) -> float | None:
    return float(np.mean(values)) if values else None


def _place(row: Record, study: Study, methods: Sequence[str]) -> tuple[Any, ...]:
    labels = [*study.splits["train"].label_names, MACRO]
    return (
        study.scored.index(row["split"]), labels.index(row["label"]), methods.index(row["method"]),
        study.encoders.index(row["encoder"]), row["fraction"],
    )  # fmt: skip


def _layout(rows: Sequence[Record], differences: Sequence[Record], study: Study) -> str:
    """Lay out one block per split and label, in it one line per method, encoder and share of labels."""
    first, labels = study.encoders[0], {row["label"] for row in rows}
    against = {tuple(d[name] for name in ("split", "label", "method", "control", "fraction")): d for d in differences}
    width = name_width(rows)
    lines: list[str] = []
    for (split, label), block in groupby(rows, lambda row: (row["split"], row["label"])):
        if label == MACRO and len(labels) == 2:
            continue  # the mean over one label repeats it
        lines += [
            f"{split}: {label}",
            f"  {'method':<9}{'encoder':<{width}}{'labels':<8}{'patients':<10}{'draws':<7}{'AUROC':<8}"
            f"{'95 % interval':<18}{first} minus it, 95 % interval",
        ]
        for (method, encoder), cells in groupby(block, lambda row: (row["method"], row["encoder"])):
            for number, row in enumerate(cells):
                name = f"{method:<9}{encoder:<{width}}" if number == 0 else ""
                difference = against.get((split, label, method, encoder, row["fraction"]))
                lines.append(f"  {name:<{9 + width}}{_cells(row, difference)}".rstrip())
        lines.append("")
    return "\n".join(lines + study.notes) + "\n"


def _cells(row: Record, difference: Record | None) -> str:
    patients = "" if row["n_train_patients"] is None else f"{row['n_train_patients']:.0f}"
    share = f"{100 * row['fraction']:g} %"
    text = f"{share:<8}{patients:<10}{row['draws']:<7}"
    if row["undefined"]:
        return text + str(row["undefined"])
    text += f"{row['auroc']:<8.3f}{span(row['auroc_low'], row['auroc_high']):<18}"
    if difference and difference["difference"] is not None:
        text += f"{difference['difference']:+.3f}  {span(difference['low'], difference['high'], '+')}"
    return text


def _note_look(study: Study, rows: Sequence[Record], settings: RunSettings, out: Path) -> str:
    most = max(row["fraction"] for row in rows)
    aurocs = {
        row["label"]: row["auroc"]
        for row in rows
        if (row["split"], row["method"], row["encoder"], row["fraction"]) == ("test", "linear", study.encoders[0], most)
        and row["label"] != MACRO
    }
    ledger = ledger_of(study.encoder, out)
    count = add_look(ledger, "curve", study.splits["test"], settings, study.encoders, aurocs)
    return f"look {count} at a test split, noted in {ledger.name}\n"
