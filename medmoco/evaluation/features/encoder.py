"""An encoder: the network, how images are prepared for it, and where its weights come from."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.config.reading import merge
from medmoco.data.loading.preprocessing import Image, Preprocessing
from medmoco.errors import SettingsError
from medmoco.evaluation.features.embedding import Options, PathLike, Unreadable, compute
from medmoco.evaluation.features.encoder_files import (
    RANDOM,
    Kind,
    Provenance,
    implied_settings,
    kind_of_source,
    load_weights_into,
    refuse_other_input,
)
from medmoco.evaluation.features.features import Features, Mirrored, fingerprint
from medmoco.evaluation.features.image_sets import Images
from medmoco.models.backbones import Backbone, check_size, create_backbone
from medmoco.training.runlog import print_warning


@dataclass(frozen=True, repr=False)
class Encoder:
    """A network, how images are prepared for it, and where it comes from.

    Attributes:
        module: (B, C, S, S) -> (B, F), in eval mode. A plain `nn.Module`: train it, wrap it, save its state dict.
        preprocessing: How images become what the module takes.
        provenance: Where the weights come from; holds no path and no name.
        settings: Those that it was loaded with, or its run's own; they name the data and the machine.
        folder: The run, export or import that it was loaded from; of a weights file, the folder that it is in.

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
        """The module that `medmoco evaluate` scores: with `preprocessing.mirror`, the mean over both mirror images."""
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

    def embed(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        as_frame: bool = False,
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Features | pd.DataFrame:
        """Return the features of images, in the order given: those that `medmoco evaluate` computes.

        Args:
            images: Paths, a folder (images at every depth, by name), a table with a `Path` column (and `Frame`, if it
                has one), arrays as `preprocess` takes them, or a `Split`. Or "train", "val" or "test" of the manifest
                that the encoder's settings name; a folder of that name is "./test".
            root: Folder that relative paths are in.
            as_frame: Return a table: `row` (of the manifest, else the position from 0), `feature_0` to `feature_F-1`,
                and for unreadable="nan" also `error`.
            unreadable: "raise" refuses the first batch with an image that cannot be read; "nan" leaves a row of NaN
                for each, and warns.
            batch_size: Images per forward pass; `evaluate.batch_size` if it is not given.
            device: Such as "cuda"; a GPU if there is one. The module stays there.
            progress: Show how far it is.

        Returns:
            (N, F) float32.

        Raises:
            ImageError: images cannot be read; names positions or rows, never paths.
            CheckpointError: features are not finite.
            SettingsError: what is given is not images, or the device is not there.

        >>> import medmoco
        >>> encoder = medmoco.load_encoder("random", {"model": {"backbone": "resnet10t"}, "views": {"size": 32}})
        >>> pixels = np.zeros((2, 40, 30), np.uint8)
        >>> encoder.embed(pixels).shape
        (2, 512)
        >>> encoder.embed(pixels, as_frame=True)["row"].tolist()
        [0, 1]
        """
        options = Options(root, unreadable, batch_size, device, progress)
        settings, module = self.settings or self.preprocessing.settings, self.as_evaluated
        if settings.train.channels_last:  # as in evaluation, to the last bit
            module.to(memory_format=torch.channels_last)
        found = compute(module, self.preprocessing, settings, images, options)
        if not as_frame:
            return found.values
        columns = {f"feature_{number}": column for number, column in enumerate(found.values.T)}
        errors = {"error": found.errors} if unreadable == "nan" else {}
        return pd.DataFrame({"row": found.rows, **columns, **errors})

    def __repr__(self) -> str:
        what, size = self.preprocessing, self.preprocessing.size
        images = f"{what.channels} images" if isinstance(what.channels, str) else what.images
        return (
            f"Encoder({self.module.name}, {self.feature_dim} features of {images} of {size} x {size} pixels, "
            f"{in_words(self.provenance)})"
        )

    def _repr_html_(self) -> str:
        return as_html(f"Encoder {self.module.name}", {
            "features": self.feature_dim, "preprocessing": _facts(self.preprocessing.model_dump()),
            "provenance": _facts(vars(self.provenance)),
        })  # fmt: skip


def load_encoder(
    source: PathLike,
    config: ConfigSource | None = None,
    *,
    log: Callable[[str], None] = print_warning,
    whole: bool = True,
) -> Encoder:
    """Load an encoder.

    Args:
        source: Run folder; export (format safetensors or timm); folder that `medmoco import` wrote; weights file of any
            known format (docs/import.md); or "random", the untrained network of the seed.
        config: Settings to use the encoder with: YAML file, or `RunSettings`. Settings that would feed it otherwise
            than in training are refused. A mapping changes what the source itself says, such as
            {"evaluate": {"size": 320}}, or adds what a weights file does not say, such as {"views": {"mean": 0.449,
            "std": 0.226}}.
        log: Receives a line for each damaged checkpoint that is passed over.
        whole: The encoder is for whole images of `evaluate.size` (or `views.size`), which is checked; a detector's is
            not.

    Returns:
        The encoder, in eval mode on the CPU.

    Raises:
        CheckpointError: the source holds no encoder, is damaged, or is of another network than the settings name.
        SettingsError: the settings do not suit the encoder, or are needed and not given.

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


def load_controls(sources: Mapping[str, str], settings: RunSettings, log: Callable[[str], None]) -> dict[str, Backbone]:
    """Load encoders by name, and after them the untrained one, which "random" stands for too."""
    named = {name: source for name, source in sources.items() if source != RANDOM}
    found = {name: load_encoder(source, settings, log=log).module for name, source in named.items()}
    return {**found, "untrained": load_encoder(RANDOM, settings).module}


def _settings_for(kind: Kind, path: Path, config: ConfigSource | None) -> RunSettings:
    """Return the settings to use a source with."""
    if isinstance(config, RunSettings):
        return config
    if config is not None and not isinstance(config, Mapping):
        return load(config)
    if kind == "random" and config is None:
        raise SettingsError('load_encoder("random") needs the settings of the network: pass config')
    given = dict(config or {})
    if kind == "file" and "backbone" in given.get("model", {}) and {"mean", "std"} <= given.get("views", {}).keys():
        implied = implied_settings("random", path)  # nothing of the file need be recognised
    else:
        implied = implied_settings(kind, path)
    tree = merge(implied, given)
    if kind in ("file", "import") and not {"mean", "std"} <= tree["views"].keys():
        raise SettingsError(
            f"{path.name} does not say how images were normalised; pass config={{'views': {{'mean': M, 'std': S}}}},\n"
            "of gray levels as shares of white (networks pretrained on ImageNet mostly expect 0.449 and 0.226)"
        )
    return load(tree)


def _create(settings: RunSettings, *, whole: bool) -> Backbone:
    untrained = settings.model.model_copy(update={"init": None})
    size, channels = settings.views.size, settings.data.channel_count
    backbone = create_backbone(untrained, seed=settings.seed, size=size, channels=channels)
    if backbone.fixed_size and settings.evaluate.size not in (None, backbone.fixed_size):
        raise SettingsError(
            f"evaluate.size {settings.evaluate.size}: {backbone.name} takes views of {backbone.fixed_size} pixels only"
        )
    if whole:
        key = "evaluate.size" if settings.evaluate.size else "views.size"
        check_size(backbone, settings.evaluate.size or size, key)
    return backbone


# In words


def in_words(provenance: Provenance) -> str:
    """Say in few words where weights come from."""
    step = "" if provenance.step is None else f", step {provenance.step}"
    words = {"random": "random weights", "file": "weights file", "run": "run", "export": "export", "import": "import"}
    return f"{words[provenance.kind]}{step}"


def as_html(title: str, rows: Mapping[str, object]) -> str:
    """Return a small table for notebooks."""
    cells = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def _facts(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, ""))
