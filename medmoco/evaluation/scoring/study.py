"""A study: splits, encoders and their controls, and the features of every image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import nn

from medmoco.config import RunSettings
from medmoco.data.loading.loading import check_images
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.manifest.manifest import Split, present_splits
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.features.encoder_files import RANDOM, Provenance, settings_of_control, split_size
from medmoco.evaluation.features.features import Extracted, Features, Mirrored, thumbnails
from medmoco.evaluation.features.inputs import (
    feature_cache,
    features_of,
    hash_of_images,
    load_splits,
    read_values,
    with_classes,
)
from medmoco.evaluation.leakage.leakage import Leaks, compare_pixels, find_leaks, find_pretraining, refuse_leaks
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.records import CONTROLS, PIXELS, UNTRAINED
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.target_records import TRAINING_MEAN
from medmoco.models.backbones import Backbone
from medmoco.utils.array_cache import ArrayCache


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
        others: Preprocessing of the controls for which it is not that of the primary encoder.
    """

    splits: dict[str, Split]
    values: dict[str, dict[str, Floats]]
    features: dict[str, dict[str, Features]]
    backbones: dict[str, Backbone]
    encoder: str
    source: Provenance
    leaks: Leaks
    notes: list[str]
    others: dict[str, Preprocessing] = field(default_factory=dict)

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
        encoders: Name -> run, export, import, weights file, or "random"; the first is the primary one. The others
            are controls, whose images are prepared as for their training, and are of the size that may follow, as in
            "imported@224". The untrained network and raw pixels are added as controls.
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
    sizes = {name: split_size(encoder)[1] for name, encoder in encoders.items()}
    encoders = {name: split_size(encoder)[0] for name, encoder in encoders.items()}
    splits, notes = _load_splits(settings, test)
    targets = settings.evaluate.targets
    values = {target: {name: read_values(split, target) for name, split in splits.items()} for target in targets}
    trained = [find_pretraining(encoder) for encoder in encoders.values()]
    for pretraining in trained:
        refuse_leaks(find_leaks(splits, pretraining), settings)  # by patient and file, before computing features
    loaded = _load_encoders(settings, encoders, sizes, log)
    backbones = {name: each.encoder.module for name, each in loaded.items()}
    modules: dict[str, nn.Module] = {
        name: Mirrored(backbone) if settings.evaluate.mirror else backbone for name, backbone in backbones.items()
    }
    primary = encoders.get(next(iter(modules)), RANDOM)
    extracted, features = _compute(modules, loaded, splits, settings, feature_cache(primary, out, log), log)
    leaks: Leaks = {}
    seen: dict[str, Sequence[bytes]] = {}
    for number, pretraining in enumerate(trained):
        found, unknown = compare_pixels(pretraining, splits, extracted, settings, log, seen)
        refuse_leaks(found, settings)
        leaks = found if number == 0 else leaks
        notes += [*pretraining.notes, *unknown]
    notes += [
        f"{name}: the checkpoint was chosen by its {how}, so scores on val are optimistic; those on test are not"
        for name, each in loaded.items()
        if (how := each.encoder.provenance.selected_by)
    ]
    others = {name: Preprocessing.of(each) for group in _groups(loaded)[1:] for name, each in group.items()}
    return Study(
        splits,
        values,
        {name: features[name] for name in [*modules, PIXELS]},
        backbones,
        primary,
        next(iter(loaded.values())).encoder.provenance,
        leaks,
        [
            *(f"{name}: images of {found.input}" for name, found in others.items()),
            *(f"{name}: {note}" for name, each in loaded.items() for note in each.notes),
            *dict.fromkeys(notes),
            *_remarks(extracted),
        ],
        others,
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


class _Loaded(NamedTuple):
    """An encoder, and the settings by which its images are prepared."""

    encoder: Encoder
    settings: RunSettings
    notes: Sequence[str] = ()


def _load_encoders(
    settings: RunSettings, encoders: Mapping[str, str], sizes: Mapping[str, int | None], log: Callable[[str], None]
) -> dict[str, _Loaded]:
    """Load the encoders and the untrained control. The first must match the settings; others may differ from them."""
    loaded: dict[str, _Loaded] = {}
    side = settings.evaluate.size or settings.views.size
    for name, encoder in encoders.items():
        size = sizes[name]
        if size not in (None, side) and (not loaded or encoder == RANDOM):
            raise SettingsError(
                f"--encoder {name}={encoder}@{size}: the first encoder and random ones take images of evaluate.size,"
                f" which is {side};\nset evaluate.size={size}, or give another encoder first"
            )
        if encoder == RANDOM:
            continue  # it is the untrained control
        own, notes = settings_of_control(encoder, size, settings) if loaded else (settings, [])
        loaded[name] = _Loaded(load_encoder(encoder, own, log=log), own, notes)
    loaded[UNTRAINED] = _Loaded(load_encoder(RANDOM, settings), settings)
    return loaded


def _groups(loaded: Mapping[str, _Loaded]) -> list[dict[str, RunSettings]]:
    """Return names and settings of the encoders whose images are prepared alike, those of the primary one first."""
    groups: dict[Preprocessing, dict[str, RunSettings]] = {}
    for name, each in loaded.items():
        groups.setdefault(Preprocessing.of(each.settings), {})[name] = each.settings
    return list(groups.values())


def _compute(
    modules: Mapping[str, nn.Module],
    loaded: Mapping[str, _Loaded],
    splits: Mapping[str, Split],
    settings: RunSettings,
    cache: ArrayCache | None,
    log: Callable[[str], None],
) -> tuple[dict[str, Extracted], dict[str, dict[str, Features]]]:
    """Return what was extracted for the primary encoder and those prepared alike, and all features by name, split."""
    own, *groups = _groups(loaded)
    networks = {**{name: modules[name] for name in own}, PIXELS: thumbnails(dimensions=settings.data.dimensions)}
    images = {name: hash_of_images(split, settings.data) if cache else None for name, split in splits.items()}
    extracted = {
        name: features_of(networks, split, settings, cache, log, images[name]) for name, split in splits.items()
    }
    features = {name: {split: found.features[name] for split, found in extracted.items()} for name in networks}
    for group in groups:
        their = next(iter(group.values()))
        known = images if their.data.pack == settings.data.pack else None
        features |= _features_of_controls({name: modules[name] for name in group}, splits, their, known, cache, log)
    return extracted, features


def _features_of_controls(
    modules: Mapping[str, nn.Module],
    splits: Mapping[str, Split],
    settings: RunSettings,
    images: Mapping[str, str | None] | None,
    cache: ArrayCache | None,
    log: Callable[[str], None],
) -> dict[str, dict[str, Features]]:
    """Return the features of controls with a preprocessing of their own, by name and split.

    `images` are the hashes of the images by split; None if they are read from another place than for the primary one.
    """
    features = {name: dict[str, Features]() for name in modules}
    for split, rows in splits.items():
        known = images[split] if images else None
        rows = rows if images else check_images(rows, settings.data)
        found = features_of(modules, rows, settings, cache, lambda text: log(f"{', '.join(modules)}: {text}"), known)
        for name, values in found.features.items():
            features[name][split] = values
    return features


def _remarks(extracted: Mapping[str, Extracted]) -> list[str]:
    """Return the remarks of the image reader on each split."""
    return [
        f"{name}: {len(found.notices)} remarks of the image reader, the first: {found.notices[0]}"
        for name, found in extracted.items()
        if found.notices
    ]
