"""Leakage: the overlap of val and test with the data on which the encoder or the probe was trained.

A run stores no patient ids, not even hashed, since short ids can be recovered by trying all. Instead, the manifest
named in its config.yaml is read again; if it is gone, the overlap is unknown. Pixels are compared by digests of
canvases, most of which are computed along with the features. Digests of other pretraining images are stored, sorted, in
the run folder, so that they are computed only once for each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from medmoco.config import RunSettings, load_run, run_of
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import also_in, image_keys, patient_ids
from medmoco.data.pack.pack import RECIPE, RECIPE_OF_CHANNELS
from medmoco.errors import DataError, ManifestError, SettingsError
from medmoco.evaluation.records import Leakage, Overlap

if TYPE_CHECKING:
    from medmoco.evaluation.features.features import Digests, Extracted

Leaks = dict[str, Leakage]
"""Scored split -> its overlap with pretraining data and train."""

_SOURCES = {"pretraining": "the data the encoder was pretrained on", "train": "train"}
_CACHE = "pretraining_pixels.npz"


@dataclass(frozen=True)
class Pretraining:
    """The pretraining data of an encoder.

    Attributes:
        split: The rows; None if there are none or they are unknown.
        run: The run folder, if any.
        settings: Settings of the run.
        notes: What is unknown, and why.
    """

    split: Split | None = None
    run: Path | None = None
    settings: RunSettings | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """Whether the encoder was pretrained on unknown data."""
        return self.split is None and bool(self.notes)


def find_pretraining(encoder: str) -> Pretraining:
    """Find the pretraining data of a run folder, a weights file, or "random".

    Raises:
        CheckpointError: the settings of a run cannot be read.
    """
    from medmoco.data.loading.loading import trained_rows  # not at the top: reports are written without torch

    path = Path(encoder)
    unchecked = "whether it was trained on val or test images was not checked"
    if encoder == "random":
        return Pretraining()
    run = run_of(path)
    if run is None:
        what = "an export or import" if path.is_dir() else "a weights file"
        return Pretraining(notes=(f"{what} does not say what it was pretrained on: {unchecked}",))
    settings = load_run(run)
    try:
        data = settings.data.model_copy(update={"labels": {}})
        split = load_manifest(data, ("train",), patients_matter=False)["train"]
    except (ManifestError, SettingsError):  # the latter if data.where names a column that is gone
        return Pretraining(notes=(f"the manifest of the run can no longer be read: {unchecked}",))
    split = trained_rows(split, settings.data)
    notes = []
    if patient_ids(split) is None:
        notes.append(
            "the run's training rows have no PatientID: whether it was trained on patients of val or test is unknown"
        )
    recorded = None
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("manifest_sha256")
    if recorded != split.sha256:
        notes.append("the manifest of the run has changed since: val and test were compared with its current rows")
    if settings.model.init:
        notes.append("the run started from other weights: whether those were trained on val or test was not checked")
    return Pretraining(split, run, settings, tuple(notes))


def find_leaks(
    splits: Mapping[str, Split],
    pretraining: Pretraining,
    digests: Mapping[str, Digests] | None = None,
    pretraining_digests: Sequence[bytes] = (),
) -> Leaks:
    """Count the patients and images that val and test share with pretraining data and with train.

    Args:
        splits: train and the splits to score.
        pretraining: Pretraining data of the encoder.
        digests: Digests of each split's rows; without them, images are compared only by file.
        pretraining_digests: Digests of pretraining images, in any order.
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
    """Refuse to score a test split that overlaps with training data, unless `evaluate.allow_leakage` is set.

    Raises:
        ManifestError: test shares patients or images with pretraining data or train; gives the counts.
    """
    lines = leak_lines({"test": leaks["test"]} if "test" in leaks else {})
    if lines and not settings.evaluate.allow_leakage:
        raise ManifestError(
            "\n".join(lines) + "\n`medmoco check` lists the rows; --against adds other pretraining data.\n"
            "Split by patient again, or set evaluate.allow_leakage=true to score with these counts next to every score"
        )


def leak_lines(leaks: Mapping[str, Leakage | None]) -> list[str]:
    """Return a sentence for each overlap of a split with training data."""
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
    """Find leaks again, comparing images also by their pixels.

    Args:
        pretraining: Pretraining data of the encoder.
        splits: train and the splits to score.
        extracted: Their features, with a digest for each row.
        settings: Settings of the evaluation, whose canvases are compared.
        log: Receives a line when more files are read.
        seen: Digests read for earlier encoders; extended here, so that shared pretraining images are read once.

    Returns:
        The leaks, and a note if some images could not be compared.
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
    """Return the digests of pretraining images that are not in the evaluation, read once per run and canvas format."""
    import torch  # not at the top: reports are written without torch

    from medmoco.evaluation.features.features import extract

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
    for pack in dict.fromkeys((data.pack, None)):  # the run's pack may be gone, or contain other canvases
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
    """Return the stored digests of this name; None if the file has another name, or is damaged."""
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
    with contextlib.suppress(OSError):  # without the file, the images are read again next time
        np.savez(file, name=name, digests=np.frombuffer(ordered, np.uint8).reshape(-1, 32))
