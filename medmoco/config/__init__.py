"""The settings: one frozen tree, resolved in the order defaults < preset < YAML file < command line.

The docstring under a field is its help text. The words after "Source:" say where the default comes from, and
`medmoco config` prints them. Presets (`views.recipe`, `method.name`) are plain dictionaries of field values, which
anything the user sets overrides. This module does not import torch, so that the command line starts fast.
"""

from __future__ import annotations

from medmoco.config.base import Float, Fraction, Int, Positive, Settings, Tree
from medmoco.config.data import (
    RESERVED_COLUMNS,
    Channels,
    DataSettings,
    JoinSettings,
    LabelPolicy,
    cell_text,
    channel_count,
)
from medmoco.config.evaluation import (
    DetectionSettings,
    EvaluateSettings,
    FinetuneSettings,
    Possible,
    Range,
    SegmentationSettings,
    TuneSettings,
)
from medmoco.config.reading import (
    BEST,
    ConfigSource,
    as_tree,
    describe,
    field_of,
    flatten,
    is_run,
    load,
    load_run,
    run_of,
    to_yaml,
)
from medmoco.config.run import RETIRED, RunSettings
from medmoco.config.training import (
    METHODS,
    DecoderSettings,
    MethodSettings,
    ModelSettings,
    PositiveSettings,
    TrainSettings,
)
from medmoco.config.views import RECIPES, RGB_RECIPES, VOLUME_RECIPES, ViewSettings

__all__ = [
    "BEST",
    "METHODS",
    "RECIPES",
    "RESERVED_COLUMNS",
    "RETIRED",
    "RGB_RECIPES",
    "VOLUME_RECIPES",
    "Channels",
    "ConfigSource",
    "DataSettings",
    "DecoderSettings",
    "DetectionSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "Float",
    "Fraction",
    "Int",
    "JoinSettings",
    "LabelPolicy",
    "MethodSettings",
    "ModelSettings",
    "Positive",
    "PositiveSettings",
    "Possible",
    "Range",
    "RunSettings",
    "SegmentationSettings",
    "Settings",
    "TrainSettings",
    "Tree",
    "TuneSettings",
    "ViewSettings",
    "as_tree",
    "cell_text",
    "channel_count",
    "describe",
    "field_of",
    "flatten",
    "is_run",
    "load",
    "load_run",
    "run_of",
    "to_yaml",
]  # fmt: skip
