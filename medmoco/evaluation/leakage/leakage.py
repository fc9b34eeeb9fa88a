"""Leakage: what a scored split shares with the data that the encoder or the probe learned from.

A run keeps no ids, not even hashed, as short ids can be recovered by trying all. So the manifest that its config.yaml
names is read again; where that is gone, the overlap is unknown. Pixels are compared by digests of canvases, most of
which come with the features. Digests of pretraining images that evaluation does not read anyway are kept in the run
folder, sorted, so that they cost one pass for each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from medmoco.config import RunSettings
from medmoco.data.loading.loading import trained_rows
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import also_in, image_keys, patient_ids
from medmoco.data.pack.pack import RECIPE, RECIPE_OF_CHANNELS
from medmoco.errors import DataError, ManifestError, SettingsError
from medmoco.evaluation.features.features import Digests, Extracted, extract
from medmoco.evaluation.records import Leakage, Overlap
from medmoco.training.checkpoint import is_run, load_run

Leaks = dict[str, Leakage]
"""Scored split -> what it shares with pretraining data and train."""

_SOURCES = {"pretraining": "the data the encoder was pretrained on", "train": "train"}
_CACHE = "pretraining_pixels.npz"


@dataclass(frozen=True)
class Pretraining:
    """What an encoder was pretrained on.

    Attributes:
        split: The rows; None where there are none or they are unknown.
        run: The run folder; None where there is none.
        settings: Of the run.
        notes: What is unknown, and why.
    """

    split: Split | None = None
    run: Path | None = None
    settings: RunSettings | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """Whether there was pretraining on unknown data."""
        return self.split is None and bool(self.notes)


def find_pretraining(encoder: str) -> Pretraining:
    """Look up what was learned from by a run folder, a weights file, or "random".

    Raises:
        CheckpointError: the settings of a run cannot be read.
    """
    run = Path(encoder)
    unchecked = "whether it has seen val or test was not checked"
    if encoder == "random":
        return Pretraining()
    if not is_run(run):
        what = "an export or import" if run.is_dir() else "a weights file"
        return Pretraining(notes=(f"{what} does not say what it was pretrained on: {unchecked}",))
    settings = load_run(run)
    try:
        data = settings.data.model_copy(update={"labels": {}})
        split = load_manifest(data, ("train",), patients_matter=False)["train"]
    except ManifestError:
        return Pretraining(notes=(f"the manifest of the run can no longer be read: {unchecked}",))
    split = trained_rows(split, settings.data)
    notes = []
    if patient_ids(split) is None:
        notes.append(
            "the run's training rows have no PatientID: whether it has seen patients of val or test is unknown"
        )
    if _recorded_manifest(run) != split.sha256:
        notes.append("the manifest of the run has changed since: val and test were compared with what it lists now")
    if settings.model.init:
        notes.append("the run started from other weights: whether those have seen val or test was not checked")
    return Pretraining(split, run, settings, tuple(notes))


def _recorded_manifest(run: Path) -> str | None:
    try:
        digest: str | None = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("manifest_sha256")
    except (OSError, ValueError):
        return None
    return digest


def find_leaks(
    splits: Mapping[str, Split],
    pretraining: Pretraining,
    digests: Mapping[str, Digests] | None = None,
    pretraining_digests: Sequence[bytes] = (),
) -> Leaks:
    """Count what val and test share with pretraining data and with train.

    Args:
        splits: train, and what is scored.
        pretraining: Of the encoder.
        digests: By split, one for each row; without them images are compared by file alone.
        pretraining_digests: Of pretraining images, in any order.
    """
    digests = digests or {}
    leaks: Leaks = {}
    for name, split in splits.items():
        if name == "train":
            continue
        own = digests.get(name, ())
        if pretraining.split is not None:
            before: Overlap | None = _shared(split, pretraining.split, own, pretraining_digests)
        else:
            before = None if pretraining.is_unknown else Overlap(patients=0, images=0)
        train = _shared(split, splits["train"], own, digests.get("train", ()))
        leaks[name] = Leakage(pretraining=before, train=train)
    return leaks


def _shared(split: Split, other: Split, own: Sequence[bytes], theirs: Sequence[bytes]) -> Overlap:
    patients, others = patient_ids(split), patient_ids(other)
    images = also_in(image_keys(split), image_keys(other))
    if own and theirs:
        known = set(theirs) - {b""}
        images = images | [digest in known for digest in own]
    shared = None if patients is None or others is None else int(patients[also_in(patients, others)].nunique())
    return Overlap(patients=shared, images=int(images.sum()))


def refuse_leaks(leaks: Leaks, settings: RunSettings) -> None:
    """Refuse to score a test split that was learned from, unless `evaluate.allow_leakage`.

    Raises:
        ManifestError: test shares patients or images with pretraining data or train; gives the counts.
    """
    lines = leak_lines({"test": leaks["test"]} if "test" in leaks else {})
    if lines and not settings.evaluate.allow_leakage:
        raise ManifestError(
            "\n".join(lines) + "\n`medmoco check` lists the rows; give it other pretraining data by --against.\n"
            "Split by patient anew, or set evaluate.allow_leakage=true: then every score carries these counts"
        )


def leak_lines(leaks: Mapping[str, Leakage | None]) -> list[str]:
    """Return a sentence for each source of data that a split shares patients or images with."""
    lines = []
    for split, leakage in leaks.items():
        for source, words in _SOURCES.items():
            found: Overlap | None = getattr(leakage, source, None)
            if found and (found.patients or found.images):
                counts = " and ".join(f"{count} {what}" for what, count in found if count is not None)
                lines.append(f"{split} shares {counts} with {words}: its scores are inflated")
    return lines


def compare_pixels(
    pretraining: Pretraining,
    splits: Mapping[str, Split],
    extracted: Mapping[str, Extracted],
    settings: RunSettings,
    log: Callable[[str], None],
    seen: dict[str, Sequence[bytes]],
) -> tuple[Leaks, list[str]]:
    """Count again, with images that are the same by their pixels.

    Args:
        pretraining: Of the encoder.
        splits: What was read.
        extracted: Of it, with a digest for each row.
        settings: Of the evaluation, whose canvases are compared.
        log: Receives a line when more files are read.
        seen: Digests read for earlier encoders; is added to, so that runs on the same images are read once.

    Returns:
        The counts, and a note where some images could not be compared.
    """
    digests = {name: found.digests for name, found in extracted.items()}
    read = {key: digest for name in splits for key, digest in zip(image_keys(splits[name]), digests[name], strict=True)}
    known: list[bytes] = []
    notes: list[str] = []
    if pretraining.split is not None:
        keys = image_keys(pretraining.split)
        known += [read[key] for key in keys if key in read]
        unread = ~keys.isin(read).to_numpy()
        if unread.any():
            more, notes = _digests_of_unread(pretraining, pretraining.split.select(unread), settings, log, seen)
            known += more
    return find_leaks(splits, pretraining, digests, known), notes


def _digests_of_unread(
    pretraining: Pretraining,
    rest: Split,
    settings: RunSettings,
    log: Callable[[str], None],
    seen: dict[str, Sequence[bytes]],
) -> tuple[Sequence[bytes], list[str]]:
    """Read the pretraining images that evaluation does not read, once for each run and kind of canvas."""
    assert pretraining.run
    assert pretraining.settings
    canvas = {key: getattr(settings.data, key) for key in (*RECIPE, *RECIPE_OF_CHANNELS)}
    data = pretraining.settings.data.model_copy(update=canvas)
    name = hashlib.sha256(f"{rest.sha256} {rest.rows.tolist()} {data.root} {canvas}".encode()).hexdigest()
    if name not in seen and (kept := _read_cache(pretraining.run / _CACHE, name)) is not None:
        seen[name] = kept
    if name in seen:
        return seen[name], []
    log(f"pixels of {len(rest)} more pretraining images, to compare with val and test")
    reason = ""
    for pack in dict.fromkeys((data.pack, None)):  # the run's pack may be gone, or hold other canvases than these
        source = settings.model_copy(update={"data": data.model_copy(update={"pack": pack})})
        try:
            found = extract({}, rest, source, torch.device("cpu")).digests
        except (DataError, SettingsError) as error:
            reason = str(error)
            continue
        _write_cache(pretraining.run / _CACHE, name, found)
        seen[name] = found
        return found, []
    return [], [f"val and test were not compared with all pretraining images by pixels: {reason}"]


def _read_cache(file: Path, name: str) -> Digests | None:
    """Return the digests kept under a name; None where they are others', or damaged."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, BadZipFile),
        file.open("rb") as stream,
        np.load(stream) as content,
    ):
        if str(content["name"]) == name:
            return tuple(line.tobytes() for line in content["digests"])
    return None


def _write_cache(file: Path, name: str, digests: Sequence[bytes]) -> None:
    ordered = b"".join(sorted(digest for digest in digests if digest))
    with contextlib.suppress(OSError):  # a run folder that cannot be written costs another pass next time
        np.savez(file, name=name, digests=np.frombuffer(ordered, np.uint8).reshape(-1, 32))
