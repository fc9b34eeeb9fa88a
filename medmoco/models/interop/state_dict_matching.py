"""Convert a foreign state dict to medmoco's; every key is loaded, omitted for a reason, or an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from medmoco.errors import CheckpointError
from medmoco.models.interop.detect_format import NAME_IT, Found, Which, find, fixed_as_in_moco_v3, network_of, own_name
from medmoco.models.interop.layouts import arranged
from medmoco.models.interop.naming import VARIANTS, naming_of
from medmoco.models.interop.schemes import OTHER, other_content
from medmoco.models.interop.state_dicts import Contents

_TENSORFLOW_EPSILON = 1.001e-5 - 1e-5


@dataclass(frozen=True)
class Row:
    """The use of one key."""

    key: str  # key in the file
    outcome: Literal["matched", "converted", "left out"]  # matched: used unchanged
    name: str  # name in medmoco's network; empty if left out
    shape: tuple[int, ...]  # shape in the file
    what: str  # how it was converted, or why it was left out


@dataclass(frozen=True)
class Imported:
    """An encoder's weights with medmoco's names."""

    state: dict[str, Tensor]  # name -> tensor, for all tensors of the network
    rows: list[Row]  # one row for each key of the file, and for each of its other entries
    found: Found  # where the encoder was found
    added: int  # number of batch counters missing in the file, which start at 0

    def count(self, outcome: str) -> int:
        """Return the number of keys with an outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    def reasons(self, outcome: str) -> Counter[str]:
        """Return the number of keys with an outcome for each reason."""
        return Counter(row.what for row in self.rows if row.outcome == outcome)

    def summary(self) -> str:
        """Return a line that describes the loaded and the omitted tensors."""
        found, parts = self.found, [f"{self.count('matched')} tensors unchanged"]
        for outcome in ("converted", "left out"):
            reasons = ", ".join(f"{count} {what}" for what, count in self.reasons(outcome).most_common())
            parts.append(f"{self.count(outcome)} {outcome}{f' ({reasons})' * bool(reasons)}")
        return f"{found.which} encoder of a {found.scheme.name} file with names of {found.naming}: {', '.join(parts)}"


@dataclass
class _Mismatches:
    """The reasons why a file does not fit a network."""

    missing: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)


def fit(
    contents: Contents,
    backbone: str,
    own: Mapping[str, Tensor],
    *,
    which: Which = "query",
    scheme: str | None = None,
    leave_out: tuple[str, ...] = (),
) -> Imported:
    """Convert the encoder in a file to the state dict of a network.

    For a network with gray input, a three-channel first layer is summed over its channels, which gives the same
    response as a gray image repeated three times. For three channels it is used unchanged; for other numbers of
    channels no established conversion exists.

    Args:
        contents: Contents of the file.
        backbone: Name of the network.
        own: Its state dict, which provides batch counters missing in the file.
        which: Encoder to use if the file has two.
        scheme: Checkpoint format, if the keys alone are ambiguous.
        leave_out: Patterns of keys to omit.

    Raises:
        CheckpointError: there is no such encoder, or a key is missing, unknown, of another shape or not finite.
    """
    _refuse_other_network(contents, backbone)
    found = find(contents, which=which, scheme=scheme, leave_out=leave_out, backbone=backbone, own=own)
    if found.naming == "tensorflow":
        _refuse_without_statistics(contents, found)
    rows, state, mismatches = [], {}, _Mismatches()
    arrangement = arranged(contents.tensors, found.names, found.naming)
    for key, value in contents.tensors.items():
        hub = arrangement.names.get(key)
        name = None if hub is None else own_name(hub, found.kind, backbone)
        shape = tuple(value.shape)
        reason = other_content(key, found.prefix, found.scheme, leave_out)
        if name in own:
            assert name is not None
            how = arrangement.how.get(key, "")
            if key not in arrangement.tensors:  # it was joined to an earlier one
                rows.append(Row(key, "converted", name, shape, how))
                continue
            converted, how = _converted(arrangement.tensors[key], own[name], found, name, how)
            if converted.shape != own[name].shape:
                mismatches.shapes[name] = (shape, tuple(own[name].shape))
            elif own[name].is_floating_point() and not (converted.is_floating_point() and converted.isfinite().all()):
                mismatches.infinite.append(key)
            state[name] = converted
            rows.append(Row(key, "converted" if how else "matched", name, shape, how))
        elif key in found.others or reason:
            rows.append(Row(key, "left out", "", shape, OTHER if key in found.others else reason or ""))
        else:
            mismatches.unknown.append(key)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    mismatches.missing += [name for name in own if name not in state and name not in counters]
    if mismatches != _Mismatches():
        fits_nothing = mismatches.missing or mismatches.shapes or mismatches.unknown
        other = network_of(contents, which, scheme, leave_out) if fits_nothing else None
        raise CheckpointError(_misfit(contents, backbone, mismatches, found, other))
    rows += [Row(name, "left out", "", (), "no tensor") for name in contents.others]
    added = len(counters.keys() - state.keys())
    if not found.kind:  # the file has the network's own names
        found = replace(found, naming=naming_of(backbone))
    return Imported({name: state.get(name, value) for name, value in own.items()}, rows, found, added)


def _converted(hub: Tensor, own: Tensor, found: Found, name: str, arranging: str) -> tuple[Tensor, str]:
    """Return a tensor for medmoco's network, and a description of the conversion, which begins with `arranging`."""
    how = [arranging] if arranging else []
    if hub.is_floating_point() and hub.dtype != own.dtype:
        how.append(f"{str(hub.dtype).removeprefix('torch.')} widened" if hub.itemsize < own.itemsize else "narrowed")
        hub = hub.to(own.dtype)
    if found.naming == "tensorflow" and name.endswith("running_var"):
        hub = hub + _TENSORFLOW_EPSILON  # TensorFlow's batch norm adds a larger epsilon to the variance
        how.append("epsilon evened out")
    if hub.ndim == 4 and hub.shape == (own.shape[0], 3, *own.shape[2:]) and own.shape[1] == 1:
        hub = hub.double().sum(1, keepdim=True).to(own.dtype)
        how.append("RGB summed to gray")
    if name == "pos_embed" and hub.ndim == 3 and hub.shape[1] != own.shape[1]:
        hub, resampled = _resampled(hub, own)
        how += resampled
    return hub, ", ".join(how)


def _resampled(positions: Tensor, own: Tensor) -> tuple[Tensor, list[str]]:
    """Return position embeddings, (1, T, F), resampled from one square grid of patches to another."""
    for tokens in (1, 0):
        old, new = (math.isqrt(max(value.shape[1] - tokens, 0)) for value in (positions, own))
        if old**2 + tokens == positions.shape[1] and new**2 + tokens == own.shape[1] and old and new:
            resampled = resample_abs_pos_embed(positions, [new, new], [old, old], num_prefix_tokens=tokens)
            return resampled, [f"positions resampled from {old} x {old} to {new} x {new}"]
    return positions, []


def _misfit(contents: Contents, backbone: str, mismatches: _Mismatches, found: Found, other: str | None) -> str:
    parts = [f"{len(keys)} {what} (first: {', '.join(keys[:2])})" for what, keys in (
        ("missing tensors", mismatches.missing), ("unknown keys", mismatches.unknown),
        ("tensors that are not finite floats", mismatches.infinite),
    ) if keys]  # fmt: skip
    if mismatches.shapes:
        name, (there, here) = next(iter(mismatches.shapes.items()))
        count = len(mismatches.shapes)
        parts.append(f"{count} tensors of another shape (first: {name}, {there} in the file, {here} in the network)")
    where = f" under '{found.prefix}'" if found.prefix else ""
    lines = [f"weights file {contents.name} does not fit {backbone} ({found.scheme.name}{where}):", "; ".join(parts)]
    stems = [(there[1], here[1]) for there, here in mismatches.shapes.values() if len(there) == len(here) == 4]
    if len(mismatches.shapes) == 1 and stems and stems[0][0] != stems[0][1]:
        lines.append(
            f"Its first layer takes {stems[0][0]} channels, but data.channels gives {stems[0][1]}; only RGB (3) can be"
            " converted to gray (1).\nSet data.channels to the number of channels in the file."
        )
    elif other and other != backbone:
        lines.append(NAME_IT.format(other))
    elif mismatches.infinite:
        lines.append(
            "Its training diverged, or it is quantised; use an earlier file, or one with floating-point numbers."
        )
    elif mismatches.unknown and not mismatches.missing and not mismatches.shapes:
        lines.append("To omit these keys, use the output of: medmoco import --leave-out 'PATTERN*'")
    else:
        lines.append("Give the network with which it was trained (model.backbone, or --backbone).")
    return "\n".join(lines)


def _refuse_without_statistics(contents: Contents, found: Found) -> None:
    """Refuse the key encoder of moco.tensorflow, whose batch-norm statistics are not updated during training.

    Source: main_moco.py of ppwwyyxx/moco.tensorflow, `ema_update='skip'`.

    Raises:
        CheckpointError: every mean is still 0 and every variance 1.
    """
    start = {"mean/EMA": 0.0, "variance/EMA": 1.0}
    values = [
        bool((contents.tensors[key] == start["/".join(key.split("/")[-2:])]).all())
        for key in found.names
        if key.endswith("/EMA")
    ]
    if values and all(values):
        raise CheckpointError(
            f"weights file {contents.name}: training never updated the batch-norm statistics of its {found.which}"
            " encoder.\nUse the query encoder."
        )


def _refuse_other_network(contents: Contents, backbone: str) -> None:
    """Refuse a network that differs without a difference in shapes, such as in the number of attention heads.

    Raises:
        CheckpointError: the file states another network, or has the positions of a moco-v3 transformer.
    """
    noted = contents.backbone
    if noted and noted.partition(".")[0] != backbone.partition(".")[0]:
        raise CheckpointError(
            f"weights file {contents.name} is of a {noted}, not a {backbone}; set model.backbone={noted}"
        )
    variant = next((variant for variant, (plain, _) in VARIANTS.items() if plain == backbone), None)
    if variant and any(key.endswith("pos_embed") and fixed_as_in_moco_v3(v) for key, v in contents.tensors.items()):
        raise CheckpointError(
            f"weights file {contents.name} is of moco-v3, whose {variant.partition('/')[2]} differs from timm's\n"
            f"{backbone} in its attention heads: the shapes are equal, but features would be wrong. Use {variant}."
        )
