"""`medmoco init`: from a folder of images, a CSV or a manifest to settings that train."""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.config import RunSettings, Tree, ViewSettings, load
from medmoco.config.data import DataSettings
from medmoco.config.paths import as_written
from medmoco.data.augment import views as view_maker
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.workers import shared_bytes
from medmoco.data.manifest.manifest import SPLITS
from medmoco.data.manifest.split_files import counts_page, patient_ids, write_folder
from medmoco.data.pack.pack_writing import bytes_of_canvas
from medmoco.errors import ManifestError, SettingsError
from medmoco.starting.collection import Collection, collect
from medmoco.starting.fingerprint import describe, warnings_about, wrapped
from medmoco.starting.machine import Machine, inspect_machine
from medmoco.starting.plan import Choice, Facts, Plan, as_tree, as_yaml, make_plan
from medmoco.starting.sources import Images, read_source
from medmoco.training.bench import step_rate
from medmoco.training.device import memory_explained
from medmoco.training.duration import duration_words
from medmoco.utils.files import SETTINGS_FILE, PathLike, config_option, free_space

_MANIFEST = "manifest"
_OWN_FILES = (*(f"{name}.csv{packed}" for name in SPLITS for packed in ("", ".gz")), "left_out.csv", "README.md")
_LONGEST = 60.0 * 24 * 365  # minutes
_MEASURED = 5.0  # seconds of training steps; a twentieth of the time for pretraining, if that is less


@dataclass(frozen=True)
class Started:
    """What `medmoco init` wrote.

    Attributes:
        config: The settings file.
        manifest: The manifest: a new folder, or the user's own.
        counts: Split -> number of images.
        left_out: Number of images in no split; left_out.csv in the manifest gives the reason for each.
        seconds: Estimated duration of pretraining.
        text: The fingerprint of the images, what to know about them, and the next command.
    """

    config: Path
    manifest: Path
    counts: dict[str, int]
    left_out: int
    seconds: float
    text: str


def init(
    source: PathLike,
    out: PathLike = ".",
    *,
    images: PathLike | None = None,
    patient: str | None = None,
    labels: Sequence[str] | None = None,
    minutes: float = 60.0,
    seed: int = 0,
    overwrite: bool = False,
    confirm: Callable[[str], bool] | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Started:
    """Write a manifest and settings that suit the images and this machine, ready for `medmoco pretrain`.

    Args:
        source: A folder of images, with or without one folder per class, or with train, val and test folders; a folder
            of DICOM files; a CSV that names images; or a manifest, which is used as it is.
        out: Folder for medmoco.yaml and the folder manifest/. Paths in medmoco.yaml are relative to the working folder
            if `source` and `out` are.
        images: Folder with the images of a CSV or manifest; by default the folder of the CSV is searched.
        patient: Regular expression with one group, which is the patient's ID, to search in each file name.
        labels: Label columns or classes to use; by default those that look like labels.
        minutes: Time for pretraining, which determines the number of epochs.
        seed: Seed of the splits, of the sample of images that is read, and of the run.
        overwrite: Replace the settings and the manifest of an earlier call.
        confirm: Asked with the meaning of a CSV's columns; nothing is written if it returns False.
        log: Receives progress messages.

    Raises:
        SettingsError: `source` does not exist, an argument does not fit it, or `out` has settings already.
        ManifestError: there are no images, or a table cannot be read.

    Examples:
        >>> import medmoco
        >>> started = medmoco.init("phantoms", "started", minutes=0.05)
        >>> started.config, started.counts["train"]
        (PosixPath('started/medmoco.yaml'), 39)
        >>> medmoco.load_config(started.config).model.backbone
        'resnet10t'
    """
    source, out = Path(source), Path(out)
    if not 0 < minutes < _LONGEST:
        raise SettingsError(f"--minutes {minutes:g} is not a time; give minutes above 0, such as 60")
    config, folder = out / SETTINGS_FILE, out / _MANIFEST
    if not overwrite:
        _refuse_existing(config, folder, source)
    machine = inspect_machine()
    listed = read_source(source, Path(images) if images else None, labels, [config, folder, out / "runs", out / "pack"])
    if patient is not None and listed.manifest is not None:
        raise SettingsError(
            f"--patient: {source} is a manifest, which is used as it is; add a column PatientID to it, or give the\n"
            "folder of its images instead"
        )
    if confirm and listed.columns and not confirm("\n".join(listed.columns)):
        raise SettingsError("nothing was written; choose labels with --labels, or rename columns in the CSV")
    found = collect(listed, machine, patient, seed, log)
    counts = {name: count for name in SPLITS if (count := int((found.splits == name).sum()))}
    if counts["train"] < 2:
        raise ManifestError(f"{source}: pretraining needs at least two images, but only {counts['train']} can be used")
    log("timing a few training steps")
    plan = make_plan(_facts(found, out), machine, minutes, lambda tree: _images_per_second(tree, found, minutes))
    manifest = listed.manifest or folder
    choices = _choices(listed, found, plan, machine, manifest, out, seed)
    heading = [f"Written by medmoco init for {counts['train']:,} training images, on {machine.text}.", _about(plan)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if listed.manifest is None:
            _write_manifest(folder, found, seed)
        config.write_text(as_yaml(choices, heading), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write to {out}: {error.strerror}; give another folder with --out") from None
    load(config)
    left_out = len(found.left_out) if listed.manifest is None else 0
    return Started(config, manifest, counts, left_out, plan.seconds, _text(listed, found, plan, config))


def _refuse_existing(config: Path, folder: Path, source: Path) -> None:
    existing = [path for path in (config, folder) if path.exists() and path.resolve() != source.resolve()]
    if existing:
        raise SettingsError(
            f"{' and '.join(map(str, existing))} exist{'s' if len(existing) == 1 else ''} already; give another folder"
            " with --out, or --overwrite to replace them"
        )


def _write_manifest(folder: Path, found: Collection, seed: int) -> None:
    files = {name: found.table[found.splits == name] for name in SPLITS}
    patients, _ = patient_ids(found.table)
    cells = found.table[list(found.labels)].apply(pd.to_numeric, errors="coerce")
    about = f"Written by `medmoco init` with seed {seed}. left_out.csv lists the images that cannot be used."
    for name in _OWN_FILES:  # of an earlier call, which may have written other splits
        (folder / name).unlink(missing_ok=True)
    page = ["# Manifest", about, *found.notes, counts_page(files, patients, cells)]
    write_folder(folder, files | {"left_out": found.left_out}, "\n\n".join(page))


# Settings


def _facts(found: Collection, out: Path) -> Facts:
    counts = found.splits.value_counts()
    train = int(counts["train"])
    coloured = found.sample.coloured / max(1, found.sample.readable)
    data = DataSettings(manifest=Path(), root=".", canvas_size=found.shape.canvas)
    return Facts(
        train=train,
        val=int(counts.get("val", 0)),
        labels=found.labels,
        coloured=coloured,
        shape=found.shape,
        decode_seconds=found.sample.seconds,
        view_seconds=_view_seconds(found.sample.canvases, found.shape.view),
        pack_bytes=len(found.table) * bytes_of_canvas(data) * (3 if coloured >= 0.5 else 1),
        free_bytes=free_space(out),
    )


def _view_seconds(canvases: list[Canvas], size: int) -> float:
    """Return the time to make two views of a canvas."""
    if not canvases:
        return 0.0
    settings, samples = ViewSettings(size=size), np.arange(len(canvases))
    times = []
    for epoch in range(3):
        start = time.perf_counter()
        drawn = [
            view_maker.draw(settings, canvases, seed=0, epoch=epoch, samples=samples, view=view) for view in range(2)
        ]
        view_maker.render(settings, canvases, drawn)
        times.append((time.perf_counter() - start) / len(canvases))
    return min(times)


def _images_per_second(tree: Tree, found: Collection, minutes: float) -> float:
    """Time a few training steps on random images."""
    shape, train = found.shape, int((found.splits == "train").sum())
    data = {"manifest": ".", "root": ".", "canvas_size": shape.canvas, **tree.get("data", {})}
    views = {"size": shape.view, **tree.get("views", {})}
    settings = load({**tree, "out": ".", "data": data, "views": views})
    with memory_explained(settings.train):
        return step_rate(settings, train, min(_MEASURED, 3 * minutes)).median


def _choices(
    listed: Images, found: Collection, plan: Plan, machine: Machine, manifest: Path, out: Path, seed: int
) -> list[Choice]:
    """Return all settings, in the order of the file."""
    root = listed.root
    name = re.sub(r"[^\w-]+", "-", Path(root.replace("{split}", "")).resolve().name).strip("-") or "images"
    chosen = [
        Choice("out", as_written(_free(out / "runs" / name)), "run folder"),
        Choice("seed", seed, "of the splits, the weights and the views"),
        Choice("data.manifest", as_written(manifest), "lists the images of each split"),
        Choice("data.root", as_written(root), "where Path in the manifest starts"),
    ]
    if found.labels:
        chosen.append(Choice("data.labels", list(found.labels), "for scores only; pretraining does not use labels"))
    packed = any(choice.key == "data.pack" for choice in plan.choices)
    if not found.is_decoded:
        faults, count = len(found.sample.faults), found.sample.count
        why = f"only {count:,} images were decoded beforehand; others may be damaged"
        if listed.manifest and faults:
            why = f"{faults:,} of {count:,} sampled images cannot be used"
        key, value = ("pack_failures", "leave_out") if packed else ("bad_images", "quarantine")
        chosen.append(Choice(f"data.{key}", value, why))
    if found.links:
        chosen.append(Choice("data.allow_symlinks", True, f"{found.links:,} files are links to another folder"))
    for choice in plan.choices:
        value = as_written(_free(out / "pack")) if choice.key == "data.pack" else choice.value
        chosen.append(Choice(choice.key, value, choice.reason))
    return _fit_shared_memory(chosen, plan.devices or max(1, len(machine.gpus)), machine.shared_memory)


def _fit_shared_memory(choices: list[Choice], processes: int, free: int | None) -> list[Choice]:
    """Lower data.workers until the batches of all processes take at most half of the free shared memory, in bytes."""
    settings: RunSettings = load(as_tree(choices))
    share, workers = settings.train.global_batch_size // processes, settings.data.workers
    while workers and free is not None and shared_bytes(settings, share, processes, workers) > free / 2:
        workers -= 1
    if workers == settings.data.workers:
        return choices
    why = f"only {(free or 0) / 1e6:,.0f} MB of shared memory are free"
    return [Choice(one.key, workers, why) if one.key == "data.workers" else one for one in choices]


def _free(path: Path) -> Path:
    """Return a path that does not exist yet: the path itself, or with a number."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


# Text


def _about(plan: Plan) -> str:
    packing = f", after {duration_words(plan.pack_seconds)} of packing" if plan.pack_seconds >= 1 else ""
    return f"Pretraining takes {duration_words(plan.seconds)}{packing}. Change any value; `#` gives the reason for it."


def _text(listed: Images, found: Collection, plan: Plan, config: Path) -> str:
    notes = [*listed.columns, *listed.notes, *found.notes, *warnings_about(found, found.shape.canvas), *plan.notes]
    command = ["medmoco", "pretrain", *config_option(config)]
    if plan.devices:
        command += ["--devices", str(plan.devices)]
    written = f"{config} and {config.parent / _MANIFEST}/" if listed.manifest is None else config
    lines = [describe(found), "", *(line for note in notes for line in wrapped("note", note))]
    return "\n".join([*lines, *wrapped("wrote", f"{written}. {_about(plan)}"), *wrapped("next", shlex.join(command))])
