"""Other people's state dict -> ours, with every key accounted for: taken, left out for a reason, or an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from medmoco.errors import CheckpointError
from medmoco.models.interop.detect_format import NAME_IT, Found, Which, find, fixed_as_in_moco_v3, network_of, own_name
from medmoco.models.interop.naming import VARIANTS, into_hub_layout
from medmoco.models.interop.schemes import OTHER, beside
from medmoco.models.interop.state_dicts import Contents

_TENSORFLOW_EPSILON = 1.001e-5 - 1e-5


@dataclass(frozen=True)
class Row:
    """What became of one key.

    Attributes:
        key: In the file.
        outcome: "matched" as it is, "converted", or "left out".
        name: In our network; empty if left out.
        shape: In the file.
        what: How it was converted, or why left out.
    """

    key: str
    outcome: Literal["matched", "converted", "left out"]
    name: str
    shape: tuple[int, ...]
    what: str


@dataclass(frozen=True)
class Imported:
    """An encoder's weights under our names.

    Attributes:
        state: Name -> tensor, all that the network has.
        rows: One for each key of the file, and each of its other entries.
        found: Where it was.
        added: Counters of batches that the file does not have, which start at 0.
    """

    state: dict[str, Tensor]
    rows: list[Row]
    found: Found
    added: int

    def count(self, outcome: str) -> int:
        """Return how many keys had an outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    def summary(self) -> str:
        """Say in one line what was taken and what was not."""
        reasons = Counter(row.what for row in self.rows if row.outcome == "left out")
        left = f" ({', '.join(f'{count} {what}' for what, count in reasons.most_common())})" if reasons else ""
        converted = Counter(row.what for row in self.rows if row.outcome == "converted")
        how = f" ({', '.join(f'{count} {what}' for what, count in converted.most_common())})" if converted else ""
        found = self.found
        return (
            f"{found.which} encoder of a {found.scheme.name} file with names of {found.naming}:"
            f" {self.count('matched')} tensors as they are, {self.count('converted')} converted{how},"
            f" {self.count('left out')} left out{left}"
        )


@dataclass
class _Wrong:
    """What keeps a file from being a network's weights."""

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
    """Turn a file's encoder into the state dict of a network.

    A three-channel first layer of a gray network's is summed over its channels: the same response to a gray image fed
    three times. Into three channels it goes as it is; into others there is no way that anyone has shown to be right.

    Args:
        contents: Of the file.
        backbone: Name of the network.
        own: Its state dict; what a file cannot have, counters of batches, is taken from it.
        which: Encoder, where the file has two.
        scheme: Of the file, where the keys alone do not tell.
        leave_out: Patterns of keys that are not wanted.

    Raises:
        CheckpointError: there is no such encoder, or a key is missing, unexplained, of another shape or not finite.
    """
    _refuse_other_network(contents, backbone)
    found = find(contents, which=which, scheme=scheme, leave_out=leave_out, backbone=backbone, own=own)
    if found.naming == "tensorflow":
        _refuse_without_statistics(contents, found)
    rows, state, wrong = [], {}, _Wrong()
    for key, value in contents.tensors.items():
        hub = found.names.get(key)
        name = None if hub is None else own_name(hub, found.kind, backbone)
        shape = tuple(value.shape)
        reason = beside(key, found.prefix, found.scheme, leave_out)
        if name in own:
            assert name is not None
            converted, how = _converted(value, own[name], found, key, name)
            if converted.shape != own[name].shape:
                wrong.shapes[name] = (shape, tuple(own[name].shape))
            elif own[name].is_floating_point() and not (converted.is_floating_point() and converted.isfinite().all()):
                wrong.infinite.append(key)
            state[name] = converted
            rows.append(Row(key, "converted" if how else "matched", name, shape, how))
        elif key in found.others or reason:
            rows.append(Row(key, "left out", "", shape, OTHER if key in found.others else reason or ""))
        else:
            wrong.unknown.append(key)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    wrong.missing += [name for name in own if name not in state and name not in counters]
    if wrong != _Wrong():
        fits_nothing = wrong.missing or wrong.shapes or wrong.unknown
        other = network_of(contents, which, scheme, leave_out) if fits_nothing else None
        raise CheckpointError(_misfit(contents, backbone, wrong, found, other))
    rows += [Row(name, "left out", "", (), "no tensor") for name in contents.others]
    added = len(counters.keys() - state.keys())
    return Imported({name: state.get(name, value) for name, value in own.items()}, rows, found, added)


def _converted(value: Tensor, own: Tensor, found: Found, key: str, name: str) -> tuple[Tensor, str]:
    """Return a tensor in our layout, and what that took."""
    hub, how = into_hub_layout(value, found.naming, key), []
    if hub.shape != value.shape:
        how.append("layout turned")
    if hub.is_floating_point() and hub.dtype != own.dtype:
        how.append(f"{str(hub.dtype).removeprefix('torch.')} widened" if hub.itemsize < own.itemsize else "narrowed")
        hub = hub.to(own.dtype)
    if found.naming == "tensorflow" and name.endswith("running_var"):
        hub = hub + _TENSORFLOW_EPSILON  # their batch norm adds more to the variance than ours
        how.append("epsilon evened out")
    if hub.ndim == 4 and hub.shape == (own.shape[0], 3, *own.shape[2:]) and own.shape[1] == 1:
        hub = hub.double().sum(1, keepdim=True).to(own.dtype)
        how.append("RGB summed to gray")
    if name == "pos_embed" and hub.ndim == 3 and hub.shape[1] != own.shape[1]:
        hub, resampled = _resampled(hub, own)
        how += resampled
    return hub, ", ".join(how)


def _resampled(positions: Tensor, own: Tensor) -> tuple[Tensor, list[str]]:
    """Resample position embeddings of one square grid of patches to another, (1, T, F)."""
    for tokens in (1, 0):
        old, new = (math.isqrt(max(value.shape[1] - tokens, 0)) for value in (positions, own))
        if old**2 + tokens == positions.shape[1] and new**2 + tokens == own.shape[1] and old and new:
            resampled = resample_abs_pos_embed(positions, [new, new], [old, old], num_prefix_tokens=tokens)
            return resampled, [f"positions resampled from {old} x {old} to {new} x {new}"]
    return positions, []


def _misfit(contents: Contents, backbone: str, wrong: _Wrong, found: Found, other: str | None) -> str:
    parts = [f"{len(keys)} {what} (first: {', '.join(keys[:2])})" for what, keys in (
        ("tensors missing", wrong.missing), ("keys that nothing explains", wrong.unknown),
        ("tensors not of finite floats", wrong.infinite),
    ) if keys]  # fmt: skip
    if wrong.shapes:
        name, (there, here) = next(iter(wrong.shapes.items()))
        parts.append(f"{len(wrong.shapes)} of another shape (first: {name}, {there} in the file, {here} here)")
    where = f" under '{found.prefix}'" if found.prefix else ""
    lines = [f"weights file {contents.name} does not fit {backbone} ({found.scheme.name}{where}):", "; ".join(parts)]
    stems = [(there[1], here[1]) for there, here in wrong.shapes.values() if len(there) == len(here) == 4]
    if len(wrong.shapes) == 1 and stems and stems[0][0] != stems[0][1]:
        lines.append(
            f"Its first layer takes {stems[0][0]} channels; only those of gray (1) and RGB (3) images are known, the"
            f" latter also for gray.\ndata.channels gives {stems[0][1]}; set it to what the file was trained with."
        )
    elif other and other != backbone:
        lines.append(NAME_IT.format(other))
    elif wrong.infinite:
        lines.append(
            "Its training diverged, or it is quantised; take an earlier file, or one of floating-point numbers."
        )
    elif wrong.unknown and not wrong.missing and not wrong.shapes:
        lines.append("If those are not wanted: medmoco import --leave-out 'PATTERN*', and use what that writes.")
    else:
        lines.append("Name the network that it was trained with (model.backbone, or --backbone).")
    return "\n".join(lines)


def _refuse_without_statistics(contents: Contents, found: Found) -> None:
    """Refuse the key encoder of moco.tensorflow, which does not keep its batch norms' statistics while training.

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
            f"weights file {contents.name}: the training never kept the batch-norm statistics of its {found.which}"
            " encoder.\nTake the query encoder."
        )


def _refuse_other_network(contents: Contents, backbone: str) -> None:
    """Refuse what shapes do not tell: another number of heads.

    Raises:
        CheckpointError: the file says it is another network's, or has the positions of a moco-v3 transformer.
    """
    noted = contents.backbone
    if noted and noted.partition(".")[0] != backbone.partition(".")[0]:
        raise CheckpointError(
            f"weights file {contents.name} is of a {noted}, not of a {backbone}; set model.backbone={noted}"
        )
    variant = next((variant for variant, (plain, _) in VARIANTS.items() if plain == backbone), None)
    if variant and any(key.endswith("pos_embed") and fixed_as_in_moco_v3(v) for key, v in contents.tensors.items()):
        raise CheckpointError(
            f"weights file {contents.name} is of moco-v3, whose {variant.partition('/')[2]} has other attention heads\n"
            f"than timm's {backbone}: the shapes are the same, the features would be wrong. Use {variant} instead."
        )
