"""A study: splits, encoders and their controls, and the features of every image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split, present_splits
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.features.encoder_files import RANDOM, Provenance, implied_settings, kind_of_source
from medmoco.evaluation.features.features import Extracted, Features, Mirrored, thumbnails
from medmoco.evaluation.features.inputs import feature_cache, features_of, load_splits, read_values, with_classes
from medmoco.evaluation.leakage.leakage import Leaks, compare_pixels, find_leaks, find_pretraining, refuse_leaks
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.records import CONTROLS, PIXELS, UNTRAINED
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.target_records import TRAINING_MEAN
from medmoco.models.backbones import Backbone


@dataclass(frozen=True)
class Study:
    """Features of E encoders, the first being the primary one.

    Attributes:
        splits: train and the scored splits.
        values: Numbers (N,) by target of `evaluate.targets` and split, nan where missing.
        features: (N, F) by encoder and split.
        backbones: Networks of the encoders that have one, without mirroring.
        encoder: Run folder or weights file of the primary encoder, or "random".
        source: Where the weights of the primary encoder come from.
        leaks: Overlap of each scored split, see `leakage`.
        notes: Notes for the reader.
    """

    splits: dict[str, Split]
    values: dict[str, dict[str, Floats]]
    features: dict[str, dict[str, Features]]
    backbones: dict[str, Backbone]
    encoder: str
    source: Provenance
    leaks: Leaks
    notes: list[str]

    @property
    def encoders(self) -> list[str]:
        """Names, in the order of the tables."""
        return list(self.features)

    @property
    def scored(self) -> list[str]:
        """The scored splits."""
        return [name for name in self.splits if name != "train"]


def begin(
    settings: RunSettings,
    encoders: Mapping[str, str],
    *,
    test: bool,
    out: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Study:
    """Load splits and encoders, and compute the features that no earlier command has kept.

    Args:
        settings: Settings of the data, the image size and the protocol.
        encoders: Name -> run folder, weights file, or "random"; the first is the primary one. The untrained network and
            raw pixels are added as controls.
        test: Whether to evaluate on the test set, and not only on val.
        out: Folder of the results, in which features are kept if the primary encoder is not a run.
        log: Receives progress messages.

    Raises:
        SettingsError: the names of labels or encoders cannot be used, or a run used other preprocessing.
        ManifestError: the manifest cannot be used, has no rows for training or scoring, or its test set shares patients
            or images with training data and `evaluate.allow_leakage` is not set.
        CheckpointError: an encoder cannot be loaded, or gives features that are not finite.
        DataError: an image cannot be used.
    """
    _check_names(settings, encoders)
    splits, notes = _load_splits(settings, test)
    targets = settings.evaluate.targets
    values = {target: {name: read_values(split, target) for name, split in splits.items()} for target in targets}
    trained = [find_pretraining(encoder) for encoder in encoders.values()]
    for pretraining in trained:
        refuse_leaks(find_leaks(splits, pretraining), settings)  # by patient and file, before computing features
    backbones, source, selected = _load_backbones(settings, encoders, log)
    modules: dict[str, nn.Module] = {
        name: Mirrored(backbone) if settings.evaluate.mirror else backbone for name, backbone in backbones.items()
    }
    cache = feature_cache(encoders.get(next(iter(modules)), RANDOM), out, log)
    networks = {**modules, PIXELS: thumbnails()}
    extracted = {name: features_of(networks, split, settings, cache, log) for name, split in splits.items()}
    leaks: Leaks = {}
    seen: dict[str, Sequence[bytes]] = {}
    for number, pretraining in enumerate(trained):
        found, unknown = compare_pixels(pretraining, splits, extracted, settings, log, seen)
        refuse_leaks(found, settings)
        leaks = found if number == 0 else leaks
        notes += [*pretraining.notes, *unknown]
    notes += [
        f"{name}: the checkpoint was chosen by its {how}, so scores on val are optimistic; those on test are not"
        for name, how in selected.items()
    ]
    features = {
        name: {split: found.features[name] for split, found in extracted.items()} for name in [*modules, PIXELS]
    }
    return Study(
        splits,
        values,
        features,
        backbones,
        encoders.get(next(iter(features)), "random"),
        source,
        leaks,
        [*dict.fromkeys(notes), *_remarks(extracted)],
    )


def _check_names(settings: RunSettings, encoders: Mapping[str, str]) -> None:
    chosen = settings.evaluate
    if not settings.data.labels and not chosen.classes and not chosen.targets:
        raise SettingsError(
            "data.labels names no label to score; set it, such as data.labels=[Pneumonia], or evaluate.classes or"
            " evaluate.targets"
        )
    if MACRO in settings.data.labels:
        raise SettingsError(f"data.labels: '{MACRO}' is the mean over labels in every table; rename that column")
    for name in encoders:
        if name in CONTROLS or (name == TRAINING_MEAN and chosen.targets):
            raise SettingsError(f"'{name}' is the name of a control that is always scored; rename the encoder")


def _load_splits(settings: RunSettings, test: bool) -> tuple[dict[str, Split], list[str]]:
    """Load train, val and on request test, filtered by `evaluate.where`, and return them with notes."""
    requested = ("val", "test") if test else ("val",)
    available = present_splits(settings.data)
    present = [name for name in requested if name in available] or requested  # if none, loading raises the error
    classes = settings.evaluate.classes
    if classes:
        data = settings.data.model_copy(update={"labels": {}})
        settings = settings.model_copy(update={"data": data})
    splits = load_splits(settings, ["train", *present])
    if classes:
        splits = with_classes(splits, classes)
        if MACRO in splits["train"].label_names:
            raise ManifestError(
                f"evaluate.classes: '{MACRO}' is the mean over classes in every table; rename that class"
            )
    notes = [f"{name}: the manifest has no {name} rows to score" for name in requested if name not in present]
    return splits, notes + [notice for split in splits.values() for notice in split.notices]


def _load_backbones(
    settings: RunSettings, encoders: Mapping[str, str], log: Callable[[str], None]
) -> tuple[dict[str, Backbone], Provenance, dict[str, str]]:
    """Return the networks with the untrained control, the provenance of the first, and how checkpoints were chosen."""
    loaded: dict[str, Encoder] = {}
    for number, (name, encoder) in enumerate(encoders.items()):
        if encoder == RANDOM:
            continue  # it is the untrained control
        # The primary encoder must match the settings; the others may have other networks.
        own = settings if number == 0 or not Path(encoder).is_dir() else _with_network_of(Path(encoder), settings)
        loaded[name] = load_encoder(encoder, own, log=log)
    loaded[UNTRAINED] = load_encoder(RANDOM, settings)
    selected = {name: how for name, found in loaded.items() if (how := found.provenance.selected_by)}
    return {name: found.module for name, found in loaded.items()}, next(iter(loaded.values())).provenance, selected


def _with_network_of(folder: Path, settings: RunSettings) -> RunSettings:
    tree = implied_settings(kind_of_source(folder), folder)
    model = settings.model.model_copy(update={"backbone": tree["model"]["backbone"]})
    return settings.model_copy(update={"model": model})


def _remarks(extracted: Mapping[str, Extracted]) -> list[str]:
    """Return the remarks of the image reader on each split."""
    return [
        f"{name}: {len(found.notices)} remarks of the image reader, the first: {found.notices[0]}"
        for name, found in extracted.items()
        if found.notices
    ]
