"""Score encoders side by side, by frozen probes and end to end, on the same films, patients and draws of labels.

`python -m benchmarks.peers.score --config F --out DIR NAME=SOURCE[,SOURCE]... [--finetune NAME=[BACKBONE:]SOURCE]...`

Several sources of a name are seeds, whose AUROCs are averaged. Prints, and writes to DIR/table.md, the table of
docs/results.md: AUROC for pneumonia, and for viral against bacterial pneumonia, with the labels of 1, 10 and 100 % of
the patients, and paired differences between the first name and each other one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings, load
from medmoco.evaluation.leakage.ledger import ledger_of, record_test_evaluation
from medmoco.evaluation.metrics.auroc import interval, share_interval
from medmoco.evaluation.records import CONTROLS
from medmoco.evaluation.scoring.scoring import Key, Predictions, draw_labels, label_targets, predict_linear, score_all
from medmoco.evaluation.scoring.study import Study, begin
from medmoco.evaluation.supervised.finetune import finetune
from medmoco.training.run_folder import StartMode

_SUBSET = "Pneumonia"  # label whose positive films are the rows of the harder task
_TASKS = {
    "viral versus bacterial": ["data.labels=[Viral]", f"evaluate.where={_SUBSET} == 1"],
    "pneumonia": ["data.labels=[Pneumonia]"],
}
_FRACTIONS = (0.01, 0.1, 1.0)  # of the training patients


class Comparison(NamedTuple):
    """What is compared, and how."""

    config: Path
    overrides: list[str]
    encoders: dict[str, list[str]]  # name -> runs or weights of its seeds
    tuned: dict[str, str]  # name -> source, which the name of another network and a colon may precede
    split: str
    draws: int
    out: Path


class Area(NamedTuple):
    """AUROC, and its (B,) bootstrap."""

    value: float
    bootstrap: NDArray[np.float64]

    def minus(self, other: Area) -> str:
        """Return the paired difference, with its interval."""
        low, high, _ = interval(self.bootstrap - other.bootstrap)
        return f"{self.value - other.value:+.3f} ({low:+.3f} to {high:+.3f})"

    def __str__(self) -> str:
        low, high, _ = share_interval(self.value, self.bootstrap)
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


Column = dict[str, list[Area]]
"""AUROCs of the seeds by name, for one task and share of labels."""


def measure(terms: Comparison) -> dict[str, Column]:
    """Return the scores by column of the table."""
    named = {
        _seed(name, number): source for name, sources in terms.encoders.items() for number, source in enumerate(sources)
    }
    whole = begin(load(terms.config, terms.overrides), named, test=terms.split == "test", out=terms.out, log=print)
    columns: dict[str, Column] = {}
    for task, given in _TASKS.items():
        settings = load(terms.config, [*terms.overrides, *given])
        study = _restricted(whole) if settings.evaluate.where else whole
        found = {fraction: _measure_share(study, settings, fraction, terms) for fraction in _FRACTIONS}
        columns |= {f"{task}, {100 * fraction:g} %": _by_name(scored) for fraction, scored in found.items()}
        if terms.split == "test":
            _record(study, settings, found[1.0])
    return columns


def _restricted(study: Study) -> Study:
    """Return the rows of a study that are positive; their features are known."""
    rows = {name: label_targets(split, _SUBSET) == 1 for name, split in study.splits.items()}
    return replace(
        study,
        splits={name: split.select(rows[name]) for name, split in study.splits.items()},
        features={
            encoder: {name: values[rows[name]] for name, values in own.items()}
            for encoder, own in study.features.items()
        },
    )


def _measure_share(study: Study, settings: RunSettings, fraction: float, terms: Comparison) -> dict[str, Area]:
    """Score all encoders, with the labels of a fraction of the patients, by the name of a seed."""
    chosen = settings.evaluate.model_copy(update={"label_fraction": fraction, "label_draws": terms.draws})
    share = settings.model_copy(update={"evaluate": chosen})
    labels, (label,) = draw_labels(study.splits["train"], share), settings.data.labels
    predictions: dict[Key, Predictions] = {}
    for encoder in study.encoders:
        predictions |= predict_linear(study, encoder, labels, share)
    for name, source in terms.tuned.items():
        scores = [_tuned(share, name, source, draw, terms) for draw in range(len(labels[label].targets))]
        predictions[Key(label, terms.split, "finetune", name)] = Predictions(np.stack(scores), [], [])
    found = {}
    for method, names in {"linear": study.encoders, "finetune": list(terms.tuned)}.items():
        for key, scored in score_all(study, [method], names, predictions, labels, share).items():
            if key.label == label and scored.score.auroc is not None:
                found[key.encoder] = Area(scored.score.auroc, scored.bootstrap)
    return found


def _tuned(settings: RunSettings, name: str, source: str, draw: int, terms: Comparison) -> NDArray[np.float64]:
    """Train end to end with one draw of labels, and return the log-odds of the split, (N,)."""
    fraction, (label,) = settings.evaluate.label_fraction, settings.data.labels
    how = settings.finetune.model_copy(update={"label_fraction": fraction, "label_draw": draw})
    backbone, _, weights = source.rpartition(":")
    model = settings.model.model_copy(update={"backbone": backbone or settings.model.backbone})
    folder = terms.out / "finetune" / f"{name}-{label}-{100 * fraction:g}-{draw}"
    evaluate = settings.evaluate.model_copy(update={"size": None})  # scored at the size it has learned from
    own = settings.model_copy(update={"finetune": how, "model": model, "evaluate": evaluate})
    found = finetune(own, weights, folder, splits=[terms.split], start=StartMode(resume=True))
    assert found  # there is only one process
    return found.scores[terms.split][:, 0]


def _record(study: Study, settings: RunSettings, scored: Mapping[str, Area]) -> None:
    """Add the evaluation to the ledger of the first run, as `medmoco curve --test` does."""
    ledger = ledger_of(study.encoder, None)
    if ledger:
        (label,) = settings.data.labels
        score = scored[study.encoders[0]].value
        record_test_evaluation(
            ledger, "benchmark", study.splits["test"], settings, study.encoders, auroc={label: score}
        )


def _seed(name: str, number: int) -> str:
    return f"{name}#{number}"


def _by_name(scored: Mapping[str, Area]) -> Column:
    column: Column = {}
    for name, area in scored.items():
        column.setdefault(name.partition("#")[0], []).append(area)
    return column


def _mean(seeds: Sequence[Area]) -> Area:
    """Average over seeds, whose bootstraps draw the same patients."""
    return Area(float(np.mean([each.value for each in seeds])), np.mean([each.bootstrap for each in seeds], axis=0))


def markdown(columns: Mapping[str, Column], sources: Mapping[str, Sequence[str]]) -> str:
    """Return the table of scores, of seeds, and of differences."""
    names = list(next(iter(columns.values())))
    lines = [f"| | images, images/s | {' | '.join(columns)} |", f"|{'---|' * (2 + len(columns))}"]
    for name in names:
        cells = (str(_mean(each[name])) for each in columns.values())
        lines.append(_row(name, cells, _speed(sources.get(name, ()))))
    for name in names:
        for number in range(len(sources.get(name, ()))):
            if len(sources[name]) > 1:
                cells = (f"{each[name][number].value:.3f}" for each in columns.values())
                lines.append(_row(f"{name}, seed {number}", cells, _speed([sources[name][number]])))
    first, *others = names
    for name in others:
        gaps = (_mean(each[first]).minus(_mean(each[name])) for each in columns.values())
        lines.append(_row(f"{first} minus {name}", gaps))
    return "\n".join(lines) + "\n"


def _row(name: str, cells: Iterable[str], speed: str = "") -> str:
    return f"| {name} | {speed} | {' | '.join(cells)} |"


def _speed(sources: Sequence[str]) -> str:
    """Return on how many images each seed was trained, and how many per second, if this package has trained them."""
    files = [Path(source).parent / "time.json" for source in sources]
    if not files or not all(file.is_file() for file in files):
        return ""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    images, seconds = (sum(record[name] for record in records) for name in ("images", "seconds"))
    return f"{images // len(records):,}, {images / seconds:.0f}"


def _pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, _, value = text.partition("=")
        yield name, value


def main() -> None:
    """Read the arguments, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.score", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--draws", type=int, default=5, help="of labelled patients [5]")
    parser.add_argument("--finetune", action="append", default=[], metavar="NAME=[BACKBONE:]SOURCE")
    parser.add_argument("encoders", nargs="+", metavar="NAME=SOURCE or KEY=VALUE", help="a KEY has a dot in its name")
    given = parser.parse_intermixed_args()
    pairs = list(_pairs(given.encoders))
    encoders = {name: value.split(",") for name, value in pairs if "." not in name}
    overrides = [f"{name}={value}" for name, value in pairs if "." in name]
    tuned = dict(_pairs(given.finetune))
    if taken := tuned.keys() & {*encoders, *CONTROLS}:
        parser.error(f"--finetune {min(taken)}: another row has this name; choose another")
    if any("#" in name for name in encoders):
        parser.error("the name of an encoder must not contain #, which numbers its seeds")
    given.out.mkdir(parents=True, exist_ok=True)
    terms = Comparison(given.config, overrides, encoders, tuned, given.split, given.draws, given.out)
    found = markdown(measure(terms), encoders)
    (given.out / "table.md").write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
