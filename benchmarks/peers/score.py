"""Score encoders side by side: `python -m benchmarks.peers.score --config F --out DIR NAME=SOURCE... [KEY=VALUE]...`.

Writes two label-efficiency curves on test, of pneumonia and of viral against bacterial pneumonia, and prints the table
of docs/results.md: AUROC, intervals, and paired differences from the first encoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import medmoco
from medmoco.config import load

_LABELS = {"viral": "Viral", "pneumonia": "Pneumonia"}  # task -> label
_TASKS = {
    "viral": ["data.labels=[Viral]", "evaluate.where=Pneumonia == 1"],
    "pneumonia": ["data.labels=[Pneumonia]"],
}
# Column -> task, fraction of the patients whose labels are used
_COLUMNS = {
    "viral versus bacterial": ("viral", 1.0), "with 10 % of patients": ("viral", 0.1),
    "with 1 % of patients": ("viral", 0.01), "pneumonia": ("pneumonia", 1.0),
    "pneumonia, 10 % of patients": ("pneumonia", 0.1), "pneumonia, 1 % of patients": ("pneumonia", 0.01),
}  # fmt: skip


def table(config: Path, encoders: dict[str, str], out: Path, overrides: list[str], split: str) -> str:
    """Return a Markdown table of all encoders and controls."""
    curves = {
        name: medmoco.curve(load(config, [*overrides, *given]), encoders, out=out / name, test=split == "test")
        for name, given in _TASKS.items()
    }
    return markdown(curves, encoders, split)


def markdown(curves: Mapping[str, medmoco.Curve], encoders: Mapping[str, str], split: str) -> str:
    """Return the table of curves by task."""
    scores: dict[str, list[str]] = {}
    gaps: dict[str, list[str]] = {}
    for task, fraction in _COLUMNS.values():
        where = (_LABELS[task], "linear", split, fraction)
        for point in curves[task].points:
            if (point.label, point.method, point.split, point.fraction) == where:
                cell = _cell(point.auroc, point.auroc_low, point.auroc_high)
                scores.setdefault(point.encoder, []).append(cell)
        for gap in curves[task].differences:
            if (gap.label, gap.method, gap.split, gap.fraction) == where:
                gaps.setdefault(gap.control, []).append(_cell(gap.difference, gap.low, gap.high, "+"))
    first = next(iter(encoders))
    lines = [f"| | images, images/s | {' | '.join(_COLUMNS)} |", f"|{'---|' * (2 + len(_COLUMNS))}"]
    lines += [f"| {name} | {_speed(encoders.get(name, ''))} | {' | '.join(cells)} |" for name, cells in scores.items()]
    lines += [f"| {first} minus {name} |  | {' | '.join(cells)} |" for name, cells in gaps.items()]
    return "\n".join(lines)


def _cell(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None or low is None or high is None:
        return "undefined"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _speed(source: str) -> str:
    """Return how many images an encoder was trained on, and how many per second, if it was trained by this package."""
    file = Path(source).parent / "time.json"
    if not source or not file.is_file():
        return ""
    record = json.loads(file.read_text(encoding="utf-8"))
    return f"{record['images']:,}, {record['images'] / record['seconds']:.0f}"


def main() -> None:
    """Read the arguments, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.score", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("encoders", nargs="+", metavar="NAME=SOURCE or KEY=VALUE", help="a KEY has a dot in its name")
    given = parser.parse_intermixed_args()
    pairs = [text.partition("=") for text in given.encoders]
    encoders = {name: source for name, _, source in pairs if "." not in name}
    overrides = [f"{name}={value}" for name, _, value in pairs if "." in name]
    print(table(given.config, encoders, given.out, overrides, given.split))


if __name__ == "__main__":
    main()
