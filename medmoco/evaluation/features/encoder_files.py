"""Sources of encoders: runs, exports, imports, weights files and random weights.

Each source has weights, and implies some of the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from medmoco.config import RunSettings, Tree, as_tree, flatten, load, load_run, run_of
from medmoco.data.loading.preprocessing import NO_DATA
from medmoco.data.pack.pack import recipe_of
from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.backbones import Backbone, named_as_exported
from medmoco.models.convert import native_size, recognised
from medmoco.models.interop.detect_format import find, recognise
from medmoco.models.interop.naming import timm_model
from medmoco.models.interop.preparation import ENCODER, FACTS, preparation_of
from medmoco.models.interop.state_dict_matching import fit
from medmoco.models.interop.state_dicts import read_contents
from medmoco.training.checkpoint import portable_settings
from medmoco.training.run_folder import load_source
from medmoco.utils.files import sha256_of

Kind = Literal["run", "export", "import", "file", "random"]

RANDOM = "random"
"""Name of the source with random weights."""

SELECTED_BY = "kNN score on val"
"""How the checkpoint in a run's folder `best` was chosen."""

CONTRACT, CLASSIFIER = "preprocessing.json", "classifier.json"

# With other preprocessing than in training, an encoder gives plausible, wrong features.
_OF_IMPORT = ("model.backbone", "views.mean", "views.std")
_OF_RUN = (
    *_OF_IMPORT,
    "data.channels",
    "data.spacing",
    "data.window",
    "data.scale",
    "data.band_ranges",
    "data.bit_depth",
)
_MUST_AGREE: dict[Kind, tuple[str, ...]] = {"run": _OF_RUN, "export": _OF_RUN, "import": _OF_IMPORT}


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from; contains no path, host, user or patient.

    Attributes:
        kind: "run", "export", "import", "file" (a weights file), or "random".
        step: Training steps of a run.
        settings_sha256: Hash of a run's settings, without those that name folders.
        scheme: Checkpoint format of a weights file, see docs/import.md.
        medmoco: Version that wrote the weights.
        licence: Licence of the weights.
        trained: "linear probe" or "fine-tuned", for the encoder of a classifier.
        selected_by: How the checkpoint of a run was chosen; None for the newest one.
        weights_sha256: Hash of all weights with their names; equal for equal encoders, whatever the file format.
    """

    kind: Kind
    step: int | None = None
    settings_sha256: str | None = None
    scheme: str | None = None
    medmoco: str | None = None
    licence: str = "not stated"
    trained: str | None = None
    selected_by: str | None = None
    weights_sha256: str = ""

    def record(self) -> dict[str, Any]:
        """Return the description of the encoder in result files."""
        optional = {"step": self.step, "selected_by": self.selected_by}
        return {"kind": self.kind} | {name: value for name, value in optional.items() if value is not None}


def kind_of_source(source: str | os.PathLike[str]) -> Kind:
    """Return the kind of a source.

    Raises:
        CheckpointError: it does not exist, or the folder contains no encoder.
    """
    path = Path(source)
    if str(source) == RANDOM:
        return "random"
    if run_of(path):  # before asking whether it exists: a run without kNN scores has no best checkpoint
        return "run"
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist;\nname a run folder, a folder written by `medmoco export` or `import`, a weights"
            f" file, or {RANDOM} for an untrained network"
        )
    if not path.is_dir():
        return "file"
    if (path / CONTRACT).is_file():
        return "export"
    if (path / FACTS).is_file():
        return "import"
    if (path / CLASSIFIER).is_file():
        raise CheckpointError(f"{path} is a classifier folder; load_classifier and the option --classifier read it")
    raise CheckpointError(
        f"{path} holds no encoder: it has no config.yaml (a run folder), no {CONTRACT} (an export)\n"
        f"and no {FACTS} (an import)"
    )


def split_size(source: str) -> tuple[str, int | None]:
    """Return a source without its size, and the size: "imported@224" is the source "imported" at 224 pixels."""
    match = re.fullmatch(r"(.+)@(\d+)", source)
    if not match or Path(source).exists():
        return source, None
    return match[1], int(match[2])


def implied_settings(kind: Kind, path: Path) -> Tree:
    """Return the settings that a source implies, without those that it leaves open.

    Raises:
        CheckpointError: it cannot be read, or its network is not recognised.
    """
    if kind == "run":
        return as_tree(load_run(run_of(path) or path))
    readers: dict[Kind, Callable[[Path], Tree]] = {
        "export": _settings_of_export, "import": _settings_of_import, "file": _settings_of_file,
    }  # fmt: skip
    tree = readers[kind](path) if kind in readers else {}
    return {"out": ".", **tree, "data": {"manifest": str(NO_DATA), "root": ".", **tree.get("data", {})}}


def refuse_other_input(kind: Kind, implied: Tree, settings: RunSettings) -> None:
    """Refuse settings with other preprocessing than in training.

    Raises:
        SettingsError: names the settings that differ.
    """
    was, now = dict(flatten(implied)), dict(flatten(as_tree(settings)))
    changed = [
        f"{key}: {kind} {was[key]}, settings {now[key]}"
        for key in _MUST_AGREE.get(kind, ())
        if key in was and was[key] != now[key]
    ]
    if changed:
        raise SettingsError(f"the {kind} was trained with other settings than these:\n" + "\n".join(changed[:4]))


def settings_of_control(source: str, size: int | None, settings: RunSettings) -> tuple[RunSettings, list[str]]:
    """Return settings that prepare images for a control as its source did, as far as that is known, and notes.

    Args:
        source: Run, export, import or weights file.
        size: Side of its input; by default that in the settings.
        settings: Settings of the evaluation.

    Raises:
        SettingsError: the size is out of range.
        CheckpointError: the source cannot be read.
    """
    path, kind = Path(source), kind_of_source(source)
    implied: dict[str, Any] = {}
    with suppress(CheckpointError) if kind == "file" else nullcontext():  # of a file, the settings may name the network
        tree = _settings_of_file(path, settings.model.backbone) if kind == "file" else implied_settings(kind, path)
        implied = dict(flatten(tree))
    own = {key: implied[key] for key in _MUST_AGREE.get(kind, _OF_IMPORT) if key in implied}
    side = size or settings.evaluate.size or settings.views.size
    if size or kind in ("import", "file"):
        own |= {"views.size": side, "evaluate.size": side}
    needed = size or side // 2  # settings do not allow views of more than twice the canvas
    if settings.data.dimensions == 2 and needed > settings.data.canvas_size:
        own["data.canvas_size"] = needed
    if kind == "import" and settings.data.channels == "rgb":
        own["data.channels"] = "gray"  # imports are written for gray images
    changes: Tree = {}
    for key, value in own.items():
        group, name = key.split(".")
        changes.setdefault(group, {})[name] = value
    try:
        found = load(settings, changes=changes)
    except SettingsError as error:
        if not size:
            raise
        reason = str(error).splitlines()[1]
        raise SettingsError(
            f"{source}@{size}: the number after @ is the side of its images in pixels, as views.size:\n{reason}"
        ) from None
    if recipe_of(found.data) != recipe_of(settings.data):  # the pack holds other canvases
        found = found.model_copy(update={"data": found.data.model_copy(update={"pack": None})})
    unknown = "it is not known how images were normalised for it; they are as for the first encoder"
    return found, [] if "views.mean" in own else [unknown]


def load_weights_into(backbone: Backbone, kind: Kind, path: Path, log: Callable[[str], None]) -> Provenance:
    """Load the weights of a source into a network; every tensor must match.

    Raises:
        CheckpointError: the weights cannot be read, are damaged, or belong to another network.
    """
    if kind == "random":
        return Provenance(kind)
    if kind == "run":
        return _load_run_into(backbone, path, log)
    facts: Tree = {}
    if kind == "export":
        path, facts = _weights_of_export(path)
    elif kind == "import":
        path, facts = path / ENCODER, _read_json(path / FACTS)
    imported = fit(read_contents(path), backbone.name, backbone.net.state_dict())
    backbone.net.load_state_dict(imported.state)
    scheme = None if kind == "export" else facts.get("scheme", imported.found.scheme.name)
    if not facts:
        return Provenance(kind, scheme=scheme)
    return Provenance(kind, scheme=scheme, medmoco=facts["libraries"]["medmoco"], licence=facts["licence"])


# Runs


def _load_run_into(backbone: Backbone, source: Path, log: Callable[[str], None]) -> Provenance:
    content, run = load_source(source, log), run_of(source) or source
    prefix = "query_encoder.backbone.net."
    model = content.get("model", {})
    state = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    if not state:
        raise CheckpointError(
            f"{run} holds no pretrained encoder. If it is a fine-tuning run, give its classifier folder to\n"
            "`medmoco predict` or `external`, or the run that it started from to --encoder"
        )
    try:
        backbone.net.load_state_dict(state)
    except RuntimeError:
        raise CheckpointError(
            f"the checkpoint of step {content['step']} does not match the {backbone.name} of the run's settings"
        ) from None
    settings = json.dumps(portable_settings(load_run(run)), sort_keys=True)
    environment = run / "environment.json"
    libraries = _read_json(environment).get("libraries", {}) if environment.is_file() else {}
    return Provenance(
        "run",
        content["step"],
        hashlib.sha256(settings.encode()).hexdigest(),
        medmoco=libraries.get("medmoco"),
        selected_by=None if source == run else SELECTED_BY,
    )


# Exports


def _settings_of_export(folder: Path) -> Tree:
    contract = _read_json(folder / CONTRACT)
    try:
        if "resample" in contract:
            return _settings_of_volumes(contract)
        step = next(contract[name] for name in ("grayscale", "colour", "bands") if name in contract)
        canvas, size = contract["canvas"], contract["resize"]["height"]
        data = {"canvas_size": canvas["longer_side"], "bit_depth": canvas["bit_depth"]}
        if "bands" in contract:
            data |= {"channels": step["channels"], "scale": step["scale"], "band_ranges": step["ranges"]}
        else:
            data |= {"channels": "rgb" if "colour" in contract else "gray", "window": step["window"]}
        return {
            "data": data,
            "views": {
                "mean": contract["normalise"]["mean"],
                "std": contract["normalise"]["std"],
                "size": min(size, 2 * canvas["longer_side"] + 1),
            },
            "evaluate": {
                "size": size,
                "mirror": contract["mirror"]["average"],
                "stages": contract.get("scored_stages", 1),  # missing in older exports
            },
            "model": {"backbone": named_as_exported(contract["model"])},
        }
    except (KeyError, StopIteration, TypeError):
        raise CheckpointError(f"{folder / CONTRACT} is damaged, or of another version of medmoco") from None


def _settings_of_volumes(contract: Tree) -> Tree:
    """Return the settings of an export for volumes.

    Raises:
        KeyError, StopIteration, TypeError: the contract is damaged.
    """
    window, shown = contract["grayscale"]["window"], "windows" if "windows" in contract else "resize"
    size = contract[shown]["size"][0]
    return {
        "data": {
            "dimensions": 3,
            "spacing": contract["resample"]["spacing"],
            "window": window,
            "bit_depth": contract["canvas"]["bit_depth"],
        },
        "views": {
            "recipe": "mr" if window == "percentiles" else "ct",
            "mean": contract["normalise"]["mean"],
            "std": contract["normalise"]["std"],
            "size": size,
        },
        "evaluate": {
            "size": size,
            "mirror": contract["mirror"]["average"],
            "volumes": "sliding" if shown == "windows" else "resized",
        },
        "model": {"backbone": named_as_exported(contract["model"])},
    }


def _weights_of_export(folder: Path) -> tuple[Path, Tree]:
    """Return the weights file of an export, after checking its SHA-256, and the content of preprocessing.json."""
    contract = _read_json(folder / CONTRACT)
    usable = [name for name in ("safetensors", "timm") if name in contract["formats"]]
    if not usable:
        raise CheckpointError(
            f"{folder} holds the formats {', '.join(contract['formats'])}; medmoco loads safetensors and timm.\n"
            "Export again with --format safetensors"
        )
    name = contract["formats"][usable[0]]["path"]
    file = folder / name
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the export again")
    if sha256_of(file) != contract["files"][name]["sha256"]:
        raise CheckpointError(f"{file} is damaged: its SHA-256 differs from {CONTRACT}. Copy the export again")
    return file, contract


# Imports and weights files


def _settings_of_import(folder: Path) -> Tree:
    facts = _read_json(folder / FACTS)
    try:
        model, preparation = facts["model"], facts["preparation"]
        size = model["size"] or preparation.get("size") or 224  # older versions wrote no size of the source's images
        return _foreign_settings(model["backbone"], size, preparation["mean"], preparation["std"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder / FACTS} is damaged, or of another version of medmoco") from None


def _settings_of_file(file: Path, expected: str | None = None) -> Tree:
    """Return what a file implies; if its tensors do not tell its network from `expected`, it is that one."""
    contents = read_contents(file)
    found = find(contents)
    name = contents.backbone or recognise(contents, found) or expected or recognised(contents)
    if expected and name == timm_model(expected)[0]:
        name = expected
    preparation = preparation_of(file, found, name)
    return _foreign_settings(name, native_size(contents), preparation.mean, preparation.std)


def _foreign_settings(backbone: str, size: int, mean: float | None, std: float | None) -> Tree:
    normalisation = {} if mean is None else {"mean": mean, "std": std}
    return {
        "data": {"canvas_size": max(256, size)},
        "views": {"size": size, **normalisation},
        "model": {"backbone": backbone},
    }


def _read_json(file: Path) -> Tree:
    try:
        return TypeAdapter(Tree).validate_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise CheckpointError(f"{file} is damaged; copy its folder again") from None
