"""The head of a report: what was pretrained on which images, what it gained, and the figure that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medmoco.data.manifest.columns import PATIENT
from medmoco.data.manifest.manifest import Split
from medmoco.datasets.phantoms.phantom import PREFIX
from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import UNNAMED, Compared, CurvePoint, Score, primary_of
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.verdict import against_strongest, name_of, patients_of, reading, verdicts
from medmoco.plotting.figures import curve_figure
from medmoco.reporting.blocks import (
    APART,
    MINUS,
    NO_BREAK,
    SPLITS,
    Answer,
    Block,
    Group,
    Plot,
    Table,
    Text,
    number,
    p_value,
    several,
    span,
    with_interval,
)
from medmoco.reporting.curves import curve_plots
from medmoco.reporting.runs import Run, missing
from medmoco.reporting.scores import encoder_name, label_words, labels_of, multiplicity
from medmoco.reporting.trained.answers import segmentation_answers

_READINGS = {"gain": "gain", "loss": "loss", "unclear": "no clear difference"}
_NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight", 9: "Nine"}
_TRAINED = {"encoder": "pretrained", "classifier": "fine-tuned"}
_METHODS = {"moco_v1": "MoCo v1", "moco_v2": "MoCo v2", "moco_v3": "MoCo v3"}

_TALLY = {"gain": "with a gain", "loss": "with a loss", "unclear": "that cannot be told apart from it"}
_MOST_ANSWERS = 3  # with a sentence each

# ---- title ----

_MODALITIES = {
    **dict.fromkeys(("CR", "DX", "X-ray"), "radiographs"),
    "MG": "mammograms", "CT": "CT images", "MR": "MR images", "US": "ultrasound images", "OP": "fundus photographs",
    "OPT": "OCT images",
}  # fmt: skip
_RADIOGRAPHIC = {"PA", "AP", "LATERAL", "LL", "RL"}


def title_of(runs: Sequence[Run]) -> str:
    """Say what was trained on which images, without names of folders."""
    images = {_images(run) for run in runs}
    on = f"on {images.pop()}" if len(images) == 1 else "on different images"
    kinds = {run.kind for run in runs}
    kind = kinds.pop() if len(kinds) == 1 else "network"
    if len(runs) == 1:
        return f"{kind.capitalize()} {_TRAINED.get(kind, 'trained')} {on}"
    return f"{_NUMBERS.get(len(runs), len(runs))} {kind}s {_TRAINED.get(kind, 'trained')} {on}, compared"


def _images(run: Run) -> str:
    train = run.splits["train"] if run.splits else None
    kind = f"synthetic {_kind(train)} (phantoms)" if is_synthetic(run) else _kind(train)
    # A condition on the rows leaves out some of them, and so do missing masks; neither is evaluated here.
    return kind if train is None or run.trained or run.settings.get("data.where") else f"{len(train):,} {kind}"


def _kind(split: Split | None) -> str:
    """Return what the images of a split are, as far as its columns say so for every image."""
    modalities, views = _cells(split, "Modality"), _cells(split, "ViewPosition")
    kinds = {_MODALITIES.get(cell, "images") for cell in modalities}
    if len(kinds) == 1:
        return kinds.pop()
    return "radiographs" if not modalities and views and views <= _RADIOGRAPHIC else "images"


def _cells(split: Split | None, column: str) -> set[str]:
    return set(split.table[column].astype(str).str.strip()) if split and column in split.table else set()


def is_synthetic(run: Run) -> bool:
    """Return whether all images of a run are phantoms of `medmoco phantom`, as their patients say."""
    tables = [split.table for split in (run.splits or {}).values()]
    return bool(tables) and all(PATIENT in table and table[PATIENT].str.startswith(PREFIX).all() for table in tables)


def subtitle_of(runs: Sequence[Run]) -> str:
    """Name the method, the backbone and the size of the training, as far as the runs agree on them."""
    parts = [_same(runs, part) for part in (_method, _backbone, _duration, _patients)]
    return " · ".join(part for part in parts if part)


def _same(runs: Sequence[Run], part: Any) -> str:
    found = {part(run) for run in runs}
    return found.pop() if len(found) == 1 else ""


def _method(run: Run) -> str:
    if run.trained:
        fraction = run.settings.get("segmentation.label_fraction", 1.0)
        share = f", with the masks of {100 * fraction:g} % of the patients" if fraction != 1 else ""
        return f"{'with a frozen encoder' if run.settings.get('segmentation.frozen') else 'trained end to end'}{share}"
    if run.is_finetuned:
        return "fine-tuned with labels"
    decoder = " with a decoder" if run.settings.get("decoder.weight") else ""
    return f"{_METHODS.get(str(run.settings.get('method.name')), 'momentum contrast')}{decoder}, without labels"


def _backbone(run: Run) -> str:
    return str(run.settings.get("model.backbone", ""))


def _duration(run: Run) -> str:
    if run.kind != "encoder" or run.step is None or run.steps is None:
        return ""
    epochs = run.settings.get("train.epochs")
    return several(epochs, "epoch") if run.step == run.steps and isinstance(epochs, int) else (
        f"{run.step:,} of {run.steps:,} steps"
    )  # fmt: skip


def _patients(run: Run) -> str:
    train = run.splits["train"] if run.splits else None
    if train is None or run.trained or PATIENT not in train.table or run.settings.get("data.where"):
        return ""
    return f"images of {several(len(set(train.patients)), 'patient')}"


# ---- answer ----


@dataclass(frozen=True)
class Finding:
    """The primary encoder of a run compared with its strongest control, for one label and one amount of labels."""

    run: Run
    own: Score | CurvePoint
    control: Score | CurvePoint
    gain: Compared
    labels: str
    """The patients whose labels were used, in words."""

    @property
    def kind(self) -> str:
        """gain, loss or unclear."""
        return reading(self.gain)


def findings(run: Run) -> list[Finding]:
    """Compare with the strongest control for every label: with the fewest and the most labels, or as evaluated."""
    points, gains = run.curve or (), run.curve_differences or ()
    split, fractions = shown_split(points), sorted({gain.fraction for gain in gains if gain.method == "linear"})
    found = []
    for label in labels_of(points):
        for fraction in dict.fromkeys([*fractions[:1], *fractions[-1:]]):
            at = [point for point in points if point.fraction == fraction]
            compared = against_strongest(at, [gain for gain in gains if gain.fraction == fraction], label, split)
            if compared:
                found.append(Finding(run, *compared, labels=patients_of(compared[0])))
    return found or list(_evaluated(run))


def _evaluated(run: Run) -> Iterable[Finding]:
    scores, gains = run.evaluation.scores or (), run.evaluation.differences or ()
    for label in labels_of(scores):
        compared = against_strongest(scores, gains, label, run.evaluation.split)
        if compared:
            fraction = compared[0].label_fraction or 1.0
            words = "all training patients" if fraction == 1 else f"{100 * fraction:g} % of the training patients"
            yield Finding(run, *compared, labels=words)


def answers(runs: Sequence[Run]) -> list[Answer]:
    """Return the main result of each run: the first label, with the fewest labels; and of its segmentation."""
    found = [findings(run) for run in runs]
    labels = [
        answer(few, [one for one in more if one.own.label == few.own.label], runs) for few, *more in filter(None, found)
    ]
    return [*labels, *segmentation_answers(runs)]


def answer(finding: Finding, more: Sequence[Finding], runs: Sequence[Run]) -> Answer:
    """Say in a sentence whether pretraining gains, loses, or cannot be told apart from the strongest control.

    Args:
        finding: Comparison with the fewest labels, where pretraining should help most.
        more: Comparisons with more labels, which are added if they show something else.
        runs: All runs of the report.
    """
    own, control, gain = finding.own, finding.control, finding.gain
    trained = "fine-tuned" if finding.run.is_finetuned else "pretrained"
    name = f"the {trained} encoder" if own.encoder == UNNAMED else own.encoder
    name += f" of {finding.run.name}" if len(runs) > 1 else ""
    other = _control(finding)
    text = (
        f"{label_words(own.label)} on {SPLITS.get(own.split, own.split)}, with the labels of {finding.labels}: the"
        f" linear probe has an AUROC of {number(own.auroc)} on {name}, and of {number(control.auroc)} on {other}, the"
        " strongest control."
    )
    text = " ".join([text, *(_with_more(one) for one in more if one.kind != finding.kind)])
    start = f"The{name[3:]}" if own.encoder == UNNAMED else name  # a user's name stays as it is
    apart = f"{start} {APART[finding.kind]} {other}"
    return Answer(finding.kind, apart, number(gain.difference, sign="+"), span(gain.low, gain.high, sign="+"), text)


def _with_more(finding: Finding) -> str:
    gain, name = finding.gain, _control(finding)
    apart = {
        "gain": f"it gains over {name}",
        "loss": f"it loses against {name}",
        "unclear": f"there is no clear difference from {name}",
    }
    difference = with_interval(gain.difference, gain.low, gain.high, sign="+")
    return f"With the labels of {finding.labels}, {apart[finding.kind]}: {difference}."


def _control(finding: Finding) -> str:
    name = finding.control.encoder  # a control with the default name of encoders is not the pretrained one
    return name if name == UNNAMED else name_of(name)


def summary(runs: Sequence[Run]) -> list[Block]:
    """Return the answer, the figure that shows it, and the same comparison for every label."""
    found = [finding for run in runs for finding in findings(run)]
    words = "{run} has not been evaluated, so its worth is unknown: `medmoco evaluate --encoder {run}`."
    notes = missing(runs, lambda run: not findings(run) and not run.curve_segmentation, words)
    main = answers(runs)
    left: list[Block] = [*main] if len(main) <= _MOST_ANSWERS else [_tally(main)]
    left += [Text(line) for line in _caveats(runs, found)]
    figure = _figure(runs)
    head: list[Block] = [Group([*_stacked(left), *figure])] if left and figure else [*left, *figure]
    return [*head, *notes, *_overview(found, runs), *(Text(line, "warning") for line in _suspicions(runs))]


def _tally(found: Sequence[Answer]) -> Text:
    """Say how many of many runs gain, lose or neither."""
    kinds = [one.kind for one in found]
    counts = (f"{kinds.count(kind)} {words}" for kind, words in _TALLY.items() if kind in kinds)
    return Text(f"Of {len(found)} runs, each compared with its strongest control: {', '.join(counts)}.")


def _stacked(blocks: Sequence[Block]) -> list[Block]:
    return [Group(blocks, stacked=True)]


def _caveats(runs: Sequence[Run], found: Sequence[Finding]) -> Iterable[str]:
    if runs and all(map(is_synthetic, runs)):
        yield "The images are synthetic phantoms, so this says nothing about patients."
    if any(finding.own.split == "val" for finding in found):
        yield (
            "Scores on the validation set are optimistic, because it was used to choose the regularisation of the"
            " probe. Confirm them once on the test set, with `--test`."
        )
    if any(run.curve_segmentation and shown_split(run.curve_segmentation) == "val" for run in runs):
        yield (
            "Scores of segmentation on the validation set are optimistic, because it also chose the epoch. Confirm them"
            " once on the test set, with `--test`."
        )
    if len({run.environment.get("manifest_sha256") for run in runs}) > 1:
        yield "The runs have different manifests: compare their scores only if they were scored on the same images."
    for run in runs:
        if run.state in ("running", "stopped", "failed"):
            steps = f" after {run.step:,} of {run.steps:,} steps" if run.step and run.steps else ""
            yield f"The training of {run.name} is not finished: it is {run.state}{steps}."


def _figure(runs: Sequence[Run]) -> list[Block]:
    """Return the label efficiency of the first label, which shows the gain best; of several runs in one figure."""
    if len(runs) == 1:
        return curve_plots(runs[0])[:1]
    points: list[CurvePoint] = []
    label = next((point.label for run in runs for point in run.curve or () if point.label != MACRO), "")
    split = shown_split([point for run in runs for point in run.curve or ()])
    for run in runs:
        primary = primary_of(run.curve or ())
        name = {"encoder": encoder_name(run, primary or "", runs, is_primary=True)}
        points += [
            point.model_copy(update=name)
            for point in run.curve or ()
            if (point.encoder, point.label, point.split, point.method) == (primary, label, split, "linear")
            and point.auroc is not None
        ]  # fmt: skip
    if len({point.encoder for point in points}) < 2:
        return []
    cells = [
        [f"{point.encoder}, {100 * point.fraction:g} %", with_interval(point.auroc, point.auroc_low, point.auroc_high)]
        for point in points
    ]
    title = f"AUROC by fraction of labelled patients, {label} on {split}, of the encoder of each run by linear probe"
    table = Table(title, ["run, labels", "AUROC (95 % interval)"], cells, decisive=True)
    words = "; ".join(f"{name}: {score}" for name, score in cells)
    return [Plot(curve_figure(points, label, split), f"{title}; bars are 95 % intervals.", f"{title}. {words}.", table)]


def _overview(found: Sequence[Finding], runs: Sequence[Run]) -> Iterable[Block]:
    if len(found) < 2:
        return
    cells = [
        [
            ", ".join([*([one.run.name] if len(runs) > 1 else []), label_words(one.own.label), one.labels]),
            with_interval(one.gain.difference, one.gain.low, one.gain.high, sign="+"),
            _READINGS[one.kind], number(one.own.auroc),
            f"{encoder_name(one.run, one.control.encoder, [one.run])} {number(one.control.auroc)}",
            p_value(one.gain.p if one.gain.p_holm is None else one.gain.p_holm),
        ]
        for one in found
    ]  # fmt: skip
    head = [
        "run, label, labelled patients" if len(runs) > 1 else "label, labelled patients",
        "difference (95 % interval)",
        "reading",
        "AUROC",
        "strongest control",
        "p (Holm)",
    ]
    splits = ", ".join(dict.fromkeys(one.own.split for one in found))
    yield Table(f"Primary encoder minus strongest control, linear probes on {splits}", head, cells, decisive=True)
    for run in runs:
        shown = [one.gain for one in found if one.run is run]
        compared = [*(run.curve_differences or ()), *(run.evaluation.differences or ())]
        for note in multiplicity(shown, compared):
            yield replace(note, text=f"{run.name}: {note.text}") if len(runs) > 1 else note


def _suspicions(runs: Sequence[Run]) -> Iterable[str]:
    """Return why scores may mean nothing: no better than chance, or no better than raw pixels."""
    for run in runs:
        start = f"{run.name}, " if len(runs) > 1 else ""
        found = verdicts(run.evaluation.scores or (), run.evaluation.differences or ())
        pixels = [verdict for verdict in found if verdict.kind == "pixels"]
        shown = [verdict for verdict in found if verdict.kind == "chance"]
        if len(pixels) > 1:  # the advice once
            labels = ", ".join(verdict.label for verdict in pixels)
            share = 100 * ((run.evaluation.scores or ())[0].label_fraction or 1)
            yield (
                f"{start}{labels} on {pixels[0].split}: with the labels of {share:g} % of the patients, raw pixels do"
                " as well as every encoder. Suspect a shortcut, or easy labels: `medmoco check` tests whether sources"
                " predict them, and evaluate.where restricts scores to one source."
            )
            pixels = []
        yield from (f"{start}{verdict}".replace(" -", f" {MINUS}") for verdict in [*shown, *pixels])


def headlines(runs: Sequence[Run]) -> list[str]:
    """Return the main result of each run in a sentence."""
    lines = [f"{one.title}: {one.effect} (95 % interval {one.interval}). {one.text}" for one in answers(runs)]
    return [line.replace(NO_BREAK, " ") for line in lines]
