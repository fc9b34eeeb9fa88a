"""What is scored and what is learned from: splits, encoders beside their controls, the features of every image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split, present_splits
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.encoder_files import RANDOM, implied_settings, kind_of_source
from medmoco.evaluation.features.features import Extracted, Features, Mirrored, extract, thumbnails
from medmoco.evaluation.features.inputs import load_splits, on_device
from medmoco.evaluation.leakage.leakage import Leaks, compare_pixels, find_leaks, find_pretraining, refuse_leaks
from medmoco.evaluation.records import CONTROLS, PIXELS, UNTRAINED
from medmoco.evaluation.scoring.table import MACRO
from medmoco.models.backbones import Backbone

Record = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Features of E encoders, the first being the one that is asked about.

    Attributes:
        splits: train, and those that are scored.
        features: Per encoder and split, (N, F).
        backbones: Those of the encoders that have one, without mirroring.
        encoder: The run folder or weights file that the first encoder came from, or "random".
        source: What it is.
        leaks: Per scored split, see `leakage`.
        notes: What a reader must know.
    """

    splits: dict[str, Split]
    features: dict[str, dict[str, Features]]
    backbones: dict[str, Backbone]
    encoder: str
    source: Record
    leaks: Leaks
    notes: list[str]

    @property
    def encoders(self) -> list[str]:
        """Names, in the order of the tables."""
        return list(self.features)

    @property
    def scored(self) -> list[str]:
        """Splits that are scored."""
        return [name for name in self.splits if name != "train"]


def begin(
    settings: RunSettings, encoders: Mapping[str, str], *, test: bool, log: Callable[[str], None] = lambda _: None
) -> Study:
    """Load all there is to score, and compute its features once.

    Args:
        settings: Of the data, the images' size and the protocol.
        encoders: Name -> run folder, weights file, or "random"; the first is the one asked about. The untrained
            network and raw pixels are added.
        test: Whether the test split is looked at; without it only val is.
        log: Told what is being done.

    Raises:
        SettingsError: labels or encoders cannot be scored as they are named, or a run was fed differently.
        ManifestError: the manifest cannot be used, has no rows to learn from or to score, or a test split that shares
            patients or images with what was learned from, unless `evaluate.allow_leakage`.
        CheckpointError: an encoder cannot be loaded, or gives features that are not finite.
        DataError: an image cannot be used.
    """
    _check_names(settings, encoders)
    splits, notes = _load_splits(settings, test)
    trained = [find_pretraining(encoder) for encoder in encoders.values()]
    for pretraining in trained:
        refuse_leaks(find_leaks(splits, pretraining), settings)  # by patient and file already, before the work
    backbones, source = _load_backbones(settings, encoders, log)
    modules: dict[str, nn.Module] = {
        name: Mirrored(backbone) if settings.evaluate.mirror else backbone for name, backbone in backbones.items()
    }
    extracted = _extract_all({**modules, PIXELS: thumbnails()}, splits, settings, log)
    leaks: Leaks = {}
    seen: dict[str, Sequence[bytes]] = {}
    for number, pretraining in enumerate(trained):
        found, unknown = compare_pixels(pretraining, splits, extracted, settings, log, seen)
        refuse_leaks(found, settings)
        leaks = found if number == 0 else leaks
        notes += [*pretraining.notes, *unknown]
    features = {
        name: {split: found.features[name] for split, found in extracted.items()} for name in [*modules, PIXELS]
    }
    return Study(
        splits,
        features,
        backbones,
        encoders.get(next(iter(features)), "random"),
        source,
        leaks,
        [*dict.fromkeys(notes), *_remarks(extracted)],
    )


def _check_names(settings: RunSettings, encoders: Mapping[str, str]) -> None:
    if not settings.data.labels:
        raise SettingsError("data.labels names no label to score; set it, such as data.labels=[Pneumonia]")
    if MACRO in settings.data.labels:
        raise SettingsError(f"data.labels: '{MACRO}' is the mean over labels in every table; rename that column")
    for name in encoders:
        if name in CONTROLS:
            raise SettingsError(f"'{name}' is the name of a control that is always scored; rename the encoder")


def _load_splits(settings: RunSettings, test: bool) -> tuple[dict[str, Split], list[str]]:
    """Load train, val and where wanted test, restricted by `evaluate.where`; notes say what is odd."""
    wanted = ("val", "test") if test else ("val",)
    there = present_splits(settings.data)
    # With none, the manifest's own refusal is the right one.
    present = [name for name in wanted if name in there] or wanted
    splits = load_splits(settings, ["train", *present])
    absent = [
        f"{name}: the manifest has no {name} rows, nothing is scored there" for name in wanted if name not in present
    ]
    return splits, absent + [notice for split in splits.values() for notice in split.notices]


def _load_backbones(
    settings: RunSettings, encoders: Mapping[str, str], log: Callable[[str], None]
) -> tuple[dict[str, Backbone], Record]:
    """Return the encoders, then the untrained control, and what the first is."""
    backbones: dict[str, Backbone] = {}
    sources: list[Record] = []
    for number, (name, encoder) in enumerate(encoders.items()):
        if encoder == RANDOM:
            continue  # it is the untrained control
        # The first must be what the settings say; those it is compared with may be other networks.
        own = settings if number == 0 or not Path(encoder).is_dir() else _with_network_of(Path(encoder), settings)
        loaded = load_encoder(encoder, own, log=log)
        backbones[name] = loaded.module
        sources.append(loaded.provenance.record())
    untrained = load_encoder(RANDOM, settings)
    backbones[UNTRAINED] = untrained.module
    return backbones, (sources or [untrained.provenance.record()])[0]


def _with_network_of(folder: Path, settings: RunSettings) -> RunSettings:
    tree = implied_settings(kind_of_source(folder), folder)
    model = settings.model.model_copy(update={"backbone": tree["model"]["backbone"]})
    return settings.model_copy(update={"model": model})


def _extract_all(
    encoders: Mapping[str, nn.Module], splits: Mapping[str, Split], settings: RunSettings, log: Callable[[str], None]
) -> dict[str, Extracted]:
    """Return the features of every split; each image is decoded once for all encoders."""
    (device,) = {on_device(module, settings) for module in encoders.values()}
    extracted = {}
    for name, split in splits.items():
        log(f"features of {name}: {len(split)} images")
        extracted[name] = extract(encoders, split, settings, device)
    return extracted


def _remarks(extracted: Mapping[str, Extracted]) -> list[str]:
    """Say what the image reader remarked on, split by split."""
    return [
        f"{name}: {len(found.notices)} remarks of the image reader, the first: {found.notices[0]}"
        for name, found in extracted.items()
        if found.notices
    ]
