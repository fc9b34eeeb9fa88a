"""An encoder: the network, the preprocessing of its images, and the provenance of its weights."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.config.reading import merge
from medmoco.data.augment.normalisation import memory_layout
from medmoco.data.loading.preprocessing import Image, Preprocessing
from medmoco.errors import SettingsError
from medmoco.evaluation.features.embedding import Options, Unreadable, as_table, compute
from medmoco.evaluation.features.encoder_files import (
    RANDOM,
    Kind,
    Provenance,
    implied_settings,
    kind_of_source,
    load_weights_into,
    refuse_other_input,
    split_size,
)
from medmoco.evaluation.features.features import Features, Mirrored, fingerprint
from medmoco.evaluation.features.image_sets import Images
from medmoco.evaluation.records import UNNAMED
from medmoco.models.backbones import Backbone, check_size, create_backbone
from medmoco.models.maps import LastMap
from medmoco.training.runlog import print_warning
from medmoco.utils.files import PathLike


class FeatureMaps(NamedTuple):
    """The last maps of a network for N images.

    Attributes:
        maps: (N, F, h, w), or (N, F, x, y, z) of volumes, float32.
        stride: Pixels or voxels of the network's input per cell of a map, along each axis.
    """

    maps: NDArray[np.float32]
    stride: int


@dataclass(frozen=True, repr=False)
class Encoder:
    """A network with the preprocessing of its images and the provenance of its weights.

    Attributes:
        module: (B, C, S, S) -> (B, F), in eval mode. A plain `nn.Module`: train it, wrap it, save its state dict.
        preprocessing: How images are converted to the module's input.
        provenance: Where the weights come from; contains no path and no name.
        settings: Settings that it was loaded with, or those of its run: the data and the machine.
        folder: Run, export or import that it was loaded from, or the folder of its weights file.

    Examples:
        >>> import medmoco
        >>> encoder = medmoco.load_encoder("random", {"model": {"backbone": "resnet10t"}, "views": {"size": 32}})
        >>> encoder
        Encoder(resnet10t, 512 features of gray images of 32 x 32 pixels, random weights)
        >>> encoder.embed(np.zeros((2, 40, 30), np.uint8)).shape
        (2, 512)
    """

    module: Backbone
    preprocessing: Preprocessing
    provenance: Provenance
    settings: RunSettings | None = None
    folder: Path | None = None

    @property
    def feature_dim(self) -> int:
        """Number of features, F."""
        return self.module.feature_dim

    @property
    def as_evaluated(self) -> nn.Module:
        """The module that `medmoco evaluate` scores: with `preprocessing.mirror`, averaged over the mirror image."""
        return Mirrored(self.module) if self.preprocessing.mirror else self.module

    def preprocess(self, image: Image) -> NDArray[np.float32]:
        """Return the module's input for one image, (C, S, S); see `Preprocessing.prepare`.

        >>> import medmoco
        >>> encoder = medmoco.load_encoder("random", {"model": {"backbone": "resnet10t"}, "views": {"size": 32}})
        >>> encoder.preprocess(np.zeros((40, 30), np.uint8)).shape
        (1, 32, 32)
        """
        return self.preprocessing.prepare(image)

    @overload
    def embed(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        as_frame: Literal[False] = False,
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Features: ...

    @overload
    def embed(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        as_frame: Literal[True],
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> pd.DataFrame: ...

    @overload
    def embed(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        dense: Literal[True],
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> FeatureMaps: ...

    def embed(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        as_frame: bool = False,
        dense: bool = False,
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Features | pd.DataFrame | FeatureMaps:
        """Return the features of images in the order given, the same as in `medmoco evaluate`.

        Args:
            images: Paths, a folder (with its subfolders, sorted by name), a table with a `Path` column and optionally
                `Frame`, arrays as for `preprocess`, or a `Split`. Or the name of a split, "train", "val" or "test", of
                the manifest in the encoder's settings; write "./test" for a folder of that name.
            root: Folder that relative paths are in.
            as_frame: Return a table: `row` (of the manifest, or the position from 0), `feature_0` to `feature_F-1`,
                and for unreadable="nan" also `error`.
            dense: Return the last map of the network instead of its pooled features, for heads of your own. It shows
                the image as `preprocess` prepares it; a volume is resized as a whole, not shown in windows.
            unreadable: "raise" stops at the first batch with an unreadable image; "nan" returns a row of NaN for each
                one, and warns.
            batch_size: Images per forward pass; by default `evaluate.batch_size`.
            device: Device such as "cuda"; by default a GPU if there is one. The module stays there.
            progress: Show a progress bar.

        Returns:
            (N, F) float32; for dense=True the maps and their stride.

        Raises:
            ImageError: images cannot be read; the message names positions or rows, never paths.
            CheckpointError: features are not finite.
            SettingsError: the argument is not images, or the device is not available.

        >>> import medmoco
        >>> encoder = medmoco.load_encoder("random", {"model": {"backbone": "resnet10t"}, "views": {"size": 32}})
        >>> pixels = np.zeros((2, 40, 30), np.uint8)
        >>> encoder.embed(pixels).shape
        (2, 512)
        >>> encoder.embed(pixels, as_frame=True)["row"].tolist()
        [0, 1]
        >>> maps, stride = encoder.embed(pixels, dense=True)
        >>> maps.shape, stride
        ((2, 512, 1, 1), 32)
        """
        if dense and as_frame:
            raise SettingsError("dense=True returns maps, which as_frame=True cannot hold; leave out one of them")
        options = Options(root, unreadable, batch_size, device, progress)
        settings, module = self.settings or self.preprocessing.settings, self.as_evaluated
        if dense:
            preprocessing = self.preprocessing.model_copy(update={"volumes": "resized"})
            maps = compute(LastMap(self.module), preprocessing, settings, images, options).values
            return FeatureMaps(maps, preprocessing.size // maps.shape[-1])
        if settings.train.channels_last:  # so that the features are bitwise those of evaluation
            module.to(memory_format=memory_layout(settings.data.dimensions, channels_last=True))
        found = compute(module, self.preprocessing, settings, images, options)
        return as_table(found, unreadable) if as_frame else found.values

    def __repr__(self) -> str:
        channels, found = self.preprocessing.channels, self.preprocessing
        images = f"{channels} images" if isinstance(channels, str) and found.dimensions == 2 else found.images
        return (
            f"Encoder({self.module.name}, {self.feature_dim} features of {images} of {found.sides}, "
            f"{describe(self.provenance)})"
        )

    def _repr_html_(self) -> str:
        return as_html(f"Encoder {self.module.name}", {
            "features": self.feature_dim, "preprocessing": _listed(self.preprocessing.model_dump()),
            "provenance": _listed(vars(self.provenance)),
        })  # fmt: skip


Encoders = Mapping[str, PathLike | Encoder] | PathLike | Encoder
"""One encoder, or several by name: a run, an export, an import, a weights file, "random", or what was loaded. In
`evaluate` and `curve`, a size in pixels may follow those after the first, as in "imported@224"."""


def load_encoder(
    source: PathLike,
    config: ConfigSource | None = None,
    *,
    log: Callable[[str], None] = print_warning,
    whole: bool = True,
) -> Encoder:
    """Load an encoder.

    Args:
        source: Run folder, which stands for its newest checkpoint, or RUN/best for that with the best kNN score; export
            (format safetensors or timm); folder written by `medmoco import`; weights file of any known format
            (docs/import.md); or "random", a randomly initialised network.
        config: Settings to use the encoder with: a YAML file or `RunSettings`, which must agree with the preprocessing
            in training. A mapping changes settings of the source, such as {"evaluate": {"size": 320}}, or adds what a
            weights file lacks, such as {"views": {"mean": 0.449, "std": 0.226}}.
        log: Receives a line for each damaged checkpoint that is skipped.
        whole: Check that the encoder accepts whole images of `evaluate.size` (or `views.size`), as all but detectors
            need.

    Returns:
        The encoder, in eval mode on the CPU.

    Raises:
        CheckpointError: the source contains no encoder, is damaged, or has another network than the settings.
        SettingsError: the settings do not match the encoder, or are needed and missing.

    Examples:
        >>> import medmoco
        >>> medmoco.load_encoder("random", {"model": {"backbone": "resnet10t"}}).feature_dim
        512
    """
    kind = kind_of_source(source)
    path = Path(source)
    settings = _settings_for(kind, path, config)
    backbone = _create(settings, whole=whole)
    if kind in ("run", "export", "import") and config is not None:
        refuse_other_input(kind, implied_settings(kind, path), settings)
    provenance = load_weights_into(backbone, kind, path, log)
    provenance = replace(provenance, weights_sha256=fingerprint(backbone))
    folder = None if kind == "random" else path if path.is_dir() else path.parent
    return Encoder(backbone.eval(), Preprocessing.of(settings), provenance, settings, folder)


def sources_of(encoders: Encoders) -> dict[str, str]:
    """Return name -> run folder, export, import, weights file, or "random"; the name of a single one is UNNAMED.

    A size other than that of the source follows it, as in "imported@224", see `split_size`.

    Raises:
        SettingsError: an encoder was loaded from a weights file, whose path it does not know, or its weights have
            changed since it was loaded.
    """
    named = encoders if isinstance(encoders, Mapping) else {UNNAMED: encoders}
    return {name: _source(name, encoder) for name, encoder in named.items()}


def _source(name: str, encoder: PathLike | Encoder) -> str:
    if not isinstance(encoder, Encoder):
        return os.fspath(encoder)
    if fingerprint(encoder.module) != encoder.provenance.weights_sha256:
        raise SettingsError(
            f"encoders: the weights of {name!r} have changed since it was loaded, but its source is evaluated;\n"
            "save its module's state dict to a file, and pass the file"
        )
    if encoder.provenance.kind == RANDOM:
        return RANDOM
    if encoder.folder is None or encoder.provenance.kind == "file":
        raise SettingsError(f"encoders: {name!r} was loaded from a weights file; pass the file's path instead")
    if encoder.settings is None:
        return str(encoder.folder)
    size, implied = encoder.settings.evaluate.size, implied_settings(encoder.provenance.kind, encoder.folder)
    is_own = size in (None, implied.get("evaluate", {}).get("size"))
    return str(encoder.folder) if is_own else f"{encoder.folder}@{size}"


def refuse_sizes(sources: Iterable[str], setting: str) -> None:
    """Refuse sources with a size of their own, where a setting is that of all encoders.

    Raises:
        SettingsError: a source has one.
    """
    for source in sources:
        if split_size(source)[1]:
            raise SettingsError(
                f"{source}: here all encoders take images of {setting}; leave out @ and the number after it"
            )


def load_controls(sources: Mapping[str, str], settings: RunSettings, log: Callable[[str], None]) -> dict[str, Backbone]:
    """Load encoders by name, and after them the untrained one; "random" is the same network.

    Raises:
        SettingsError: a source has a size of its own, or as `load_encoder`.
    """
    refuse_sizes(sources.values(), "evaluate.size")
    named = {name: source for name, source in sources.items() if source != RANDOM} | {"untrained": RANDOM}
    return {name: load_encoder(source, settings, log=log).module for name, source in named.items()}


def _settings_for(kind: Kind, path: Path, config: ConfigSource | None) -> RunSettings:
    """Return the settings of a source, combined with those given."""
    if config is not None and not isinstance(config, Mapping):
        return load(config)
    if kind == "random" and config is None:
        raise SettingsError('load_encoder("random") needs the settings of the network: pass config')
    given = dict(config or {})
    if kind == "file" and "backbone" in given.get("model", {}) and {"mean", "std"} <= given.get("views", {}).keys():
        implied = implied_settings("random", path)  # the file's format need not be recognised
    else:
        implied = implied_settings(kind, path)
    tree = merge(implied, given)
    if kind in ("file", "import") and not {"mean", "std"} <= tree["views"].keys():
        raise SettingsError(
            f"{path.name} does not say how images were normalised; pass config={{'views': {{'mean': M, 'std': S}}}},\n"
            "for gray levels from 0 to 1 (networks pretrained on ImageNet mostly expect 0.449 and 0.226)"
        )
    return load(tree)


def _create(settings: RunSettings, *, whole: bool) -> Backbone:
    untrained = settings.model.model_copy(update={"init": None})
    size, channels, stages = settings.views.size, settings.data.channel_count, settings.evaluate.stages
    backbone = create_backbone(
        untrained, seed=settings.seed, size=size, channels=channels, stages=stages, dimensions=settings.data.dimensions
    )
    if backbone.fixed_size and settings.evaluate.size not in (None, backbone.fixed_size):
        raise SettingsError(
            f"evaluate.size {settings.evaluate.size}: {backbone.name} takes views of {backbone.fixed_size} pixels only"
        )
    if whole:
        key = "evaluate.size" if settings.evaluate.size else "views.size"
        check_size(backbone, settings.evaluate.size or size, key)
    return backbone


def describe(provenance: Provenance) -> str:
    """Return the source of weights in a few words."""
    words = {"random": "random weights", "file": "weights file"}.get(provenance.kind, provenance.kind)
    step = "" if provenance.step is None else f", step {provenance.step}"
    return words + step + (f", chosen by its {provenance.selected_by}" if provenance.selected_by else "")


def as_html(title: str, rows: Mapping[str, object]) -> str:
    """Return a small table for notebooks."""
    cells = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, ""))
