"""`medmoco import`: convert another project's weights file, with a report on every key and the preprocessing."""

from __future__ import annotations

import csv
import json
import math
import tempfile
import textwrap
from collections.abc import Sequence
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
from medmoco.models.interop.preparation import ENCODER, FACTS, preparation_of
from medmoco.models.interop.schemes import Preparation
from medmoco.models.interop.state_dict_matching import Imported, fit
from medmoco.models.interop.state_dicts import Contents, plain_tensors, read_contents
from medmoco.utils.files import PathLike, sha256_of

KEYS = "keys.csv"

_SIZE = 224  # of views, for networks that accept any size
_WIDTH = 100  # of a line of the report


def import_weights(
    file: PathLike,
    out: PathLike,
    *,
    backbone: str | None = None,
    which: Which = "query",
    scheme: str | None = None,
    leave_out: Sequence[str] = (),
    mean: float | None = None,
    std: float | None = None,
) -> str:
    """Write the encoder of a third-party weights file with medmoco's names, and a report on every key.

    Args:
        file: Weights file in any known format (docs/import.md). Nothing in it is executed.
        out: New or empty folder, which `load_encoder` takes afterwards.
        backbone: Name of the network; by default the one whose names and shapes match the file.
        which: Encoder to use if the file has two.
        scheme: Checkpoint format, if the keys alone are ambiguous.
        leave_out: Patterns of keys to omit, with `*`.
        mean: Mean with which the source normalised gray images, as a fraction of white; by default as far as the file,
            its format or its folder state it.
        std: Standard deviation, given together with `mean`.

    Returns:
        Lines of text that describe the result and how to use it.

    Raises:
        SettingsError: `out` is not empty or cannot be written, the backbone or format is unknown, or only one of `mean`
            and `std` is given.
        CheckpointError: the file cannot be read, or does not contain such an encoder.

    Examples:
        >>> import medmoco
        >>> print(medmoco.import_weights("export/encoder.safetensors", "imported", backbone="test_resnet"))
        test_resnet, 96 features
        ...
    """
    file, out, leave_out = Path(file), Path(out), tuple(leave_out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose another one")
    if (mean is None) != (std is None) or (mean is not None and not (0 <= mean <= 1 and std and std > 0)):
        raise SettingsError("give mean (0 to 1) and std (above 0) together, as fractions of white")
    contents = read_contents(file)
    name = backbone or contents.backbone or recognised(contents, which, scheme, leave_out)
    size = native_size(contents, which, scheme, leave_out)
    net = create_backbone(ModelSettings(backbone=name), seed=0, size=size)
    imported = fit(contents, net.name, net.net.state_dict(), which=which, scheme=scheme, leave_out=leave_out)
    preparation = imported.found.scheme.preparation
    if mean is not None:
        preparation = Preparation(mean, std, "as given")
    elif scheme is None:
        preparation = preparation_of(file, imported.found, net.name)
    facts = _facts(file, net, imported, preparation)
    try:
        _write(out.resolve(), net, imported, facts)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    return _report(out, net, imported, preparation)


def recognised(
    contents: Contents, which: Which = "query", scheme: str | None = None, leave_out: tuple[str, ...] = ()
) -> str:
    """Return the name of the network that a weights file holds.

    Raises:
        CheckpointError: it is none of those that can be recognised.
    """
    found = find(contents, which=which, scheme=scheme, leave_out=leave_out)
    name = recognise(contents, found, leave_out)
    if name is None and (found.kind, found.naming) == ("efficientnet", "timm"):
        raise CheckpointError(
            f"weights file {contents.name} seems to contain an EfficientNet, but the tensors do not tell how it pads"
            " images.\nGive the name of the timm network with --backbone NAME: tf_efficientnet_lite0, for example, if"
            " the weights are from TensorFlow, else efficientnet_lite0."
        )
    if name is None:
        raise CheckpointError(
            f"weights file {contents.name} ({found.scheme.name}) seems to contain a {found.kind}, but no known network"
            " of this type has its tensors.\nGive the name of the timm network with --backbone NAME; the error then"
            " lists what does not fit."
        )
    return name


def native_size(
    contents: Contents, which: Which = "query", scheme: str | None = None, leave_out: tuple[str, ...] = ()
) -> int:
    """Return the side, in pixels, for which a transformer's positions were made, so that they are kept unchanged.

    For other networks, and if the encoder is not found, it is 224.
    """
    try:
        found = find(contents, which=which, scheme=scheme, leave_out=leave_out)
    except CheckpointError:
        return _SIZE
    shapes = {name: contents.tensors[key].shape for key, name in found.names.items()}
    if {"pos_embed", "patch_embed.proj.weight"} <= shapes.keys():
        for tokens in (1, 0):
            side = math.isqrt(max(shapes["pos_embed"][1] - tokens, 0))
            if side and side**2 + tokens == shapes["pos_embed"][1]:
                return side * shapes["patch_embed.proj.weight"][-1]
    return _SIZE


def _facts(file: Path, net: Backbone, imported: Imported, preparation: Preparation) -> dict[str, Any]:
    """Return the content of import.json. The file is identified by its hash alone, since its path is private."""
    found = imported.found
    return {
        "source": {"sha256": sha256_of(file), "bytes": file.stat().st_size, "kind": file.suffix.lstrip(".")},
        "scheme": found.scheme.name,
        "encoder": found.which,
        "names": found.naming,
        "model": {"backbone": net.name, "feature_dim": net.feature_dim, "size": net.fixed_size},
        "keys": {
            "matched": imported.count("matched"),
            "converted": dict(imported.reasons("converted")),
            "left_out": dict(imported.reasons("left out")),
            "added": imported.added,
        },
        "preparation": {**asdict(preparation), "order": "(pixel / white - mean) / std"},
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


def _report(out: Path, net: Backbone, imported: Imported, preparation: Preparation) -> str:
    """Return a description of the result and how to use it."""
    found, size = imported.found, f" for views of {net.fixed_size} pixels" if net.fixed_size else ""
    source, counts = imported.summary().split(": ", 1)
    lines = [
        f"{net.name}{size}, {net.feature_dim} features",
        f"{source}:",
        *textwrap.wrap(counts, _WIDTH),
        f"the use of every key: {out / KEYS}",
        *textwrap.wrap(f"preprocessing of the source: {preparation.note}", _WIDTH),
    ]
    if found.scheme.name == "moco":
        lines.append("files of MoCo-CXR have the same keys; if this is one of them, add --scheme moco-cxr")
    elif found.scheme.name == "dinov2" and preparation == found.scheme.preparation:
        lines.append("files of RAD-DINO have the same keys; if this is one of them, add --scheme rad-dino")
    normalisation = [f"views.mean={preparation.mean} views.std={preparation.std}"]
    if preparation.mean is None:
        normalisation = []
        lines.append("if you know mean and standard deviation, import again with --mean and --std")
    native = net.fixed_size or preparation.size
    at_native = [f"or, at its native size, --encoder NAME={out}@{native}"] if native else []
    return "\n".join([
        *lines,
        f"to compare your encoder with it in evaluate or curve, add --encoder NAME={out}",
        *at_native,
        "to use it, set",
        f"model.backbone={net.name} model.init={out / ENCODER}",
        *normalisation,
    ])  # fmt: skip
