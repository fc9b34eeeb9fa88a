"""A weights file of others -> a folder: the encoder under our names, what became of every key, how to feed it."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save

import medmoco
from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.interop.detect_format import Which, find, recognise
from medmoco.models.interop.naming import kind_of
from medmoco.models.interop.state_dict_matching import Imported, fit
from medmoco.models.interop.state_dicts import Contents, plain_tensors, read_contents
from medmoco.utils.files import sha256_of

ENCODER, FACTS, KEYS = "encoder.safetensors", "import.json", "keys.csv"

_SIZE = 224  # of views, where the network does not care


def import_weights(
    file: Path,
    out: Path,
    *,
    backbone: str | None = None,
    which: Which = "query",
    scheme: str | None = None,
    leave_out: tuple[str, ...] = (),
) -> str:
    """Write the encoder of a weights file under our names, with an account of every key.

    Args:
        file: Of any known scheme (docs/import.md).
        out: New or empty folder.
        backbone: Name of the network; without it, the one that has the file's names and shapes.
        which: Encoder, where the file has two.
        scheme: Of the file, where the keys alone do not tell.
        leave_out: Patterns of keys that are not wanted, with `*`.

    Returns:
        What was done, and how to use it.

    Raises:
        SettingsError: `out` is not empty or cannot be written, or there is no such backbone or scheme.
        CheckpointError: the file cannot be read, or does not hold such an encoder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose another for the import")
    contents = read_contents(file)
    name = backbone or contents.backbone or recognised(contents, which, scheme, leave_out)
    size = native_size(contents, which, scheme, leave_out) if kind_of(name) == "vit" else _SIZE
    net = create_backbone(ModelSettings(backbone=name), seed=0, size=size)
    imported = fit(contents, net.name, net.net.state_dict(), which=which, scheme=scheme, leave_out=leave_out)
    facts = _facts(file, net, imported)
    try:
        _write(out.resolve(), net, imported, facts)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    return _account(out, net, imported)


def recognised(
    contents: Contents, which: Which = "query", scheme: str | None = None, leave_out: tuple[str, ...] = ()
) -> str:
    """Return the name of the network that a weights file holds.

    Raises:
        CheckpointError: it is none of those that can be recognised.
    """
    found = find(contents, which=which, scheme=scheme, leave_out=leave_out)
    name = recognise(contents, found, leave_out)
    if name is None:
        raise CheckpointError(
            f"weights file {contents.name} ({found.scheme.name}) seems to hold a {found.kind}, but none of those that"
            " are looked for has its tensors.\nName the network of timm that it is, --backbone NAME; what does not fit"
            " is then named."
        )
    return name


def native_size(
    contents: Contents, which: Which = "query", scheme: str | None = None, leave_out: tuple[str, ...] = ()
) -> int:
    """Return the side in pixels that a transformer's positions were made for, so that they are kept as they are."""
    found = find(contents, which=which, scheme=scheme, leave_out=leave_out)
    shapes = {name: contents.tensors[key].shape for key, name in found.names.items()}
    if {"pos_embed", "patch_embed.proj.weight"} <= shapes.keys():
        for tokens in (1, 0):
            side = math.isqrt(max(shapes["pos_embed"][1] - tokens, 0))
            if side and side**2 + tokens == shapes["pos_embed"][1]:
                return side * shapes["patch_embed.proj.weight"][-1]
    return _SIZE


def _facts(file: Path, net: Backbone, imported: Imported) -> dict[str, Any]:
    """Return the content of import.json. The file is named by its hash alone: its place is nobody's business."""
    found = imported.found
    converted = Counter(row.what for row in imported.rows if row.outcome == "converted")
    left_out = Counter(row.what for row in imported.rows if row.outcome == "left out")
    return {
        "source": {"sha256": sha256_of(file), "bytes": file.stat().st_size, "kind": file.suffix.lstrip(".")},
        "scheme": found.scheme.name,
        "encoder": found.which,
        "names": found.naming,
        "model": {"backbone": net.name, "feature_dim": net.feature_dim, "size": net.fixed_size},
        "keys": {
            "matched": imported.count("matched"),
            "converted": dict(converted),
            "left_out": dict(left_out),
            "added": imported.added,
        },
        "preparation": {**asdict(found.scheme.preparation), "order": "(pixel / white - mean) / std"},
        "licence": "as the source's",
        "libraries": {module.__name__: module.__version__ for module in (medmoco, torch, timm)},
    }


def _write(out: Path, net: Backbone, imported: Imported, facts: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".medmoco-import-") as temporary:
        folder = Path(temporary) / "import"
        folder.mkdir()
        content = save(plain_tensors(imported.state), metadata={"format": "pt", "backbone": net.name})
        (folder / ENCODER).write_bytes(content)
        with (folder / KEYS).open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(("key", "outcome", "name", "shape", "what"))
            for row in imported.rows:
                table.writerow((row.key, row.outcome, row.name, "x".join(map(str, row.shape)), row.what))
        text = json.dumps(facts, indent=2, allow_nan=False)
        (folder / FACTS).write_text(f"{text}\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)


def _account(out: Path, net: Backbone, imported: Imported) -> str:
    """Say what was taken and how to go on."""
    found, size = imported.found, f" for views of {net.fixed_size} pixels" if net.fixed_size else ""
    preparation = found.scheme.preparation
    lines = [
        f"{net.name}{size}, {net.feature_dim} features",
        imported.summary(),
        f"every key and what became of it: {out / KEYS}",
        f"pixels as the source was fed: {preparation.note}",
    ]
    if found.scheme.name == "moco":
        lines.append("MoCo-CXR's files look the same; if this is one of them: --scheme moco-cxr")
    fed = "" if preparation.mean is None else f" views.mean={preparation.mean} views.std={preparation.std}"
    lines.append(f"use it with model.backbone={net.name} model.init={out / ENCODER}{fed}")
    return "\n".join(lines)
