"""Similarity placement: where an image's changed twin ranks among all images: `medmoco placement`.

Of image i, the candidates are its twin and every image but i itself, N in all. They are ranked by the cosine of their
features with those of i; rank 1 is the nearest. Cosines that differ by less than float32 can tell are ties, and a twin
with t ties may be at any of t + 1 places with equal chance: its rank is the middle one, and recall@k counts the share
of those places that are among the first k. Chance is k / N. Other images of the same patient are candidates like any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from medmoco.config import RunSettings, ViewSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError, ManifestError
from medmoco.evaluation.features.features import Features, extract, thumbnails
from medmoco.evaluation.features.inputs import load_controls, load_splits, make_folder, on_device
from medmoco.evaluation.metrics.auroc import draw_counts
from medmoco.evaluation.scoring.table import name_width
from medmoco.inspection.perturbations import AMOUNTS, Twin, make_twins, parse_twin
from medmoco.models.projectors import projector
from medmoco.plotting.figures import Line, rank_figure, save
from medmoco.training.checkpoint import load_checkpoint, load_run
from medmoco.training.runlog import write_json

Record = dict[str, Any]
Ranks = NDArray[np.float64]

TIE = 1e-6
"""Cosines closer than this are equal: the error of a sum of some thousand float32 products."""

_RECALLS = (1, 5, 10, 50, 100)
_ROWS_AT_A_TIME = 2048  # twins whose features are held at once
_CELLS = 2**19  # cosines held at once, 2 MiB: they are counted while they are in the cache


class Placed(NamedTuple):
    """How many of the other images are nearer than the twin, and how many are as near, each (N,) int64."""

    nearer: NDArray[np.int64]
    ties: NDArray[np.int64]

    def ranks(self) -> Ranks:
        """Return the middle of each twin's possible ranks, from 1."""
        return 1 + self.nearer + self.ties / 2

    def found(self, k: int) -> Ranks:
        """Return the chance that each twin is among the first k, ties being in random order."""
        return np.clip((k - self.nearer) / (self.ties + 1), 0, 1)


def placement(
    settings: RunSettings,
    sources: Mapping[str, str],
    out: Path,
    *,
    split: str = "val",
    twins: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Rank every image's twins by encoders' features, beside an untrained one's and raw pixels.

    Writes placement.json, histogram.csv (how many twins have each rank), a figure of the ranks for each twin, and
    table.txt. Every image is read twice, however many twins there are; memory holds the features of the split, never
    all cosines.

    Args:
        settings: Of the data, of how the encoder is fed, of the bootstrap. `evaluate.mirror` is not applied: an image
            and its mirror image would be one.
        sources: By name a run folder, whose embedding (after the projector) is ranked too, a weights file, or "random".
        out: Folder.
        split: Name in the manifest.
        twins: See `parse_twin`; all kinds if empty. The views are of the first run's recipe if there is a run.
        log: Told what is being done.

    Returns:
        The table.

    Raises:
        SettingsError: there is no such twin; `out` cannot be written; the run was fed differently.
        ManifestError: the manifest cannot be used, or has one image only.
        CheckpointError: the encoder cannot be loaded.
        DataError: an image cannot be used.
    """
    chosen = [parse_twin(text) for text in dict.fromkeys(twins or AMOUNTS)]
    make_folder(out)
    found = load_splits(settings, (split,))[split]
    for notice in found.notices:
        log(notice)
    if len(found) < 2:
        raise ManifestError(f"{found.csv.name}: one {split} image alone has no rank; give it company")
    encoders = {**load_controls(sources, settings, log), "pixels": thumbnails()}
    runs = {name: Path(source) for name, source in sources.items() if Path(source).is_dir()}
    heads = {name: load_projector(run, settings) for name, run in runs.items()}
    recipe = load_run(next(iter(runs.values()))).views if runs else settings.views
    views = recipe.model_copy(update={"size": settings.evaluate.size or settings.views.size})
    placed = place_split(found, encoders, heads, chosen, views, settings, log)
    records = [_record(placing, *key, found, settings) for key, placing in placed.items()]
    write_json(out / "placement.json", records)
    _histogram(placed).to_csv(out / "histogram.csv", index=False)
    for twin in map(str, chosen):
        lines = [_line(name, placing, at) for at, (name, placing) in enumerate(_of_twin(placed, twin).items())]
        save(
            rank_figure(lines, f"{twin}, {found.name}: {len(found)} images"),
            out / f"ranks_{twin.replace(':', '_')}.svg",
        )
    table = layout(records, settings)
    (out / "table.txt").write_text(table, encoding="utf-8")
    return table


def load_projector(run: Path, settings: RunSettings) -> nn.Module:
    """Load what a run has between features and embedding, (N, F) -> (N, D).

    Raises:
        CheckpointError: the run does not hold it.
    """
    content = load_checkpoint(run / "checkpoints", lambda _: None)
    prefix, method = "query_encoder.projector.", load_run(run).method
    model = content.get("model", {})
    state = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    try:
        layers = projector(method, next(iter(state.values())).shape[1])
        layers.load_state_dict(state)
    except (RuntimeError, StopIteration, IndexError):
        raise CheckpointError(
            f"the checkpoint of step {content['step']} does not hold the projector of the run's settings"
        ) from None
    return layers.eval()


class _OfView(nn.Module):
    """An encoder that is given V views and looks at one, (B, V * C, S, S) -> (B, F)."""

    def __init__(self, encoder: nn.Module, view: int, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = slice(view * channels, (view + 1) * channels)

    def forward(self, views: Tensor) -> Tensor:
        features: Tensor = self.encoder(views[:, self.channels])
        return features


def place_split(
    split: Split,
    encoders: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    twins: Sequence[Twin],
    views: ViewSettings,
    settings: RunSettings,
    log: Callable[[str], None],
) -> dict[tuple[str, str], Placed]:
    """Rank the twins of every row by each encoder.

    Args:
        split: N rows.
        encoders: (B, C, S, S) -> (B, F), by name.
        heads: What an encoder's features are also ranked behind: as "NAME embedding".
        twins: How they differ.
        views: See `make_twins`.
        settings: Of the data.
        log: Told what is being done.

    Returns:
        By encoder and twin.
    """
    (device,) = {on_device(module, settings) for module in encoders.values()}
    log(f"features of {split.name}: {len(split)} images")
    plain = extract(encoders, split, settings, device).features
    bank = {name: values.to(device) for name, values in _unit(plain, heads).items()}
    parts: dict[tuple[str, str], list[Placed]] = {(name, str(twin)): [] for name in bank for twin in twins}
    for start in range(0, len(split), _ROWS_AT_A_TIME):
        some = split.select(np.arange(start, min(start + _ROWS_AT_A_TIME, len(split))))
        log(f"twins of images {start + 1} to {start + len(some)}")
        make = partial(make_twins, twins=twins, views=views, rows=some.rows, seed=settings.seed)
        lookers = {
            f"{name} {twin}": _OfView(module, view, settings.data.channel_count)
            for name, module in encoders.items()
            for view, twin in enumerate(twins)
        }
        seen = extract(lookers, some, settings, device, make=make).features
        of_twin = [_unit({name: seen[f"{name} {twin}"] for name in encoders}, heads) for twin in twins]
        for name, images in bank.items():
            placed = place(images, start, [values[name].to(device) for values in of_twin])
            for twin, part in zip(twins, placed, strict=True):
                parts[name, str(twin)].append(part)
    return {key: Placed(*map(np.concatenate, zip(*some_of, strict=True))) for key, some_of in parts.items()}


def _unit(features: Mapping[str, Features], heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return features of unit length, and behind those that have a head its embeddings."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, values in features.items():
            found[name] = normalize(torch.from_numpy(values), dim=1)
            if name in heads:
                found[f"{name} embedding"] = normalize(heads[name](torch.from_numpy(values)), dim=1)
    return found


def place(images: Tensor, start: int, twins: Sequence[Tensor]) -> list[Placed]:
    """Count, for M images, which others are nearer than their twins; a block of cosines at a time.

    Args:
        images: (N, F) unit L2 norm, all of them.
        start: The M images are those from here on.
        twins: (M, F) unit L2 norm each, one for each kind of twin.
    """
    asked = images[start : start + len(twins[0])]
    own = [(asked * twin).sum(1, keepdim=True) for twin in twins]  # (M, 1)
    nearer, near = (torch.zeros(len(twins), len(asked), dtype=torch.int64, device=images.device) for _ in range(2))
    step = max(1, _CELLS // len(asked))
    for first in range(0, len(images), step):
        cosines = asked @ images[first : first + step].T  # (M, step)
        itself = torch.arange(start, start + len(asked), device=images.device)
        itself = itself[(itself >= first) & (itself < first + step)]
        cosines[itself - start, itself - first] = -torch.inf
        above = torch.empty_like(cosines)  # ones and zeros as floats: summed ten times faster than truth values
        for kind, cosine in enumerate(own):
            nearer[kind] += torch.gt(cosines, cosine + TIE, out=above).sum(1).long()
            near[kind] += torch.ge(cosines, cosine - TIE, out=above).sum(1).long()
    return [Placed(*pair) for pair in zip(nearer.cpu().numpy(), (near - nearer).cpu().numpy(), strict=True)]


# What is written


def _record(placed: Placed, encoder: str, twin: str, split: Split, settings: RunSettings) -> Record:
    ranks, count = placed.ranks(), len(split)
    recalls = [k for k in _RECALLS if k < count]
    found = np.stack([placed.found(k) for k in recalls])
    lowest, highest = _intervals(found, split.patients, settings)
    lower, median, upper = np.percentile(ranks, [25, 50, 75])
    return {
        "encoder": encoder,
        "twin": twin,
        "split": split.name,
        "n": count,
        "n_patients": int(np.unique(split.patients).size),
        "recall": [
            {"k": k, "recall": value, "low": low, "high": high, "chance": k / count}
            for k, value, low, high in zip(recalls, found.mean(1).tolist(), lowest, highest, strict=True)
        ],
        "median_rank": median,
        "quartiles": [lower, upper],
        "largest_rank": ranks.max(),
        "n_ties": int((placed.ties > 0).sum()),
        "where": settings.evaluate.where,
        "size": settings.evaluate.size or settings.views.size,
        "bootstrap": settings.evaluate.bootstrap,
        "seed": settings.seed,
    }


def _intervals(found: Ranks, patients: NDArray[np.int64], settings: RunSettings) -> tuple[list[float], list[float]]:
    """Return 95 % intervals of the means of K rows of values, (K, N), from draws of patients.

    Where every value is 0 or every one is 1, so is every draw; then the interval is the exact one of Clopper and
    Pearson 1934 (doi:10.1093/biomet/26.4.404), with every patient as one case.
    """
    names, codes = np.unique(patients, return_inverse=True)
    totals = np.stack([np.bincount(codes, row) for row in found] + [np.bincount(codes)], axis=1)  # (patients, K + 1)
    draws = settings.evaluate.bootstrap
    drawn = np.empty((draws, len(found) + 1))
    for block, counts in draw_counts(names.size, draws=draws, seed=settings.seed, cells=names.size):
        drawn[block] = counts @ totals
    low, high = np.percentile(drawn[:, :-1] / drawn[:, -1:], [2.5, 97.5], axis=0)
    edge = 0.025 ** (1 / names.size)
    low, high = np.where(found.min(1) == 1, edge, low), np.where(found.max(1) == 0, 1 - edge, high)
    return low.tolist(), high.tolist()


def _histogram(placed: Mapping[tuple[str, str], Placed]) -> pd.DataFrame:
    """Count the images of each rank; only ranks that occur have a line."""
    frames = []
    for (encoder, twin), placing in placed.items():
        ranks, counts = np.unique(placing.ranks(), return_counts=True)
        frames.append(pd.DataFrame({"encoder": encoder, "twin": twin, "rank": ranks, "images": counts}))
    return pd.concat(frames)


def _of_twin(placed: Mapping[tuple[str, str], Placed], twin: str) -> dict[str, Placed]:
    return {encoder: placing for (encoder, kind), placing in placed.items() if kind == twin}


def _line(name: str, placed: Placed, at: int) -> Line:
    """Return the share of twins that have each rank or a better one, from rank 1 to the last."""
    ranks, counts = np.unique(placed.ranks(), return_counts=True)
    shares = np.cumsum(counts) / counts.sum()
    if ranks[0] > 1:
        ranks, shares = np.insert(ranks, 0, 1), np.insert(shares, 0, 0)
    if ranks[-1] < len(placed.nearer):
        ranks, shares = np.append(ranks, len(placed.nearer)), np.append(shares, 1)
    return Line(name, ranks.tolist(), shares.tolist(), colour=at, stepped=True)


def layout(records: Sequence[Record], settings: RunSettings) -> str:
    """Lay records out as text: a block for each twin, a line for each encoder.

    Args:
        records: As in placement.json.
        settings: Of the ranking.
    """
    first = records[0]
    where = f", where {first['where']}" if first["where"] else ""
    shown = [place for place, entry in enumerate(first["recall"]) if entry["k"] in (1, 5, 10)]
    head = "".join(f"{'recall@' + str(first['recall'][place]['k']):<25}" for place in shown)
    lines = [
        f"{settings.model.backbone}, {first['split']}: {first['n']} images of {first['n_patients']} patients{where}, "
        f"{first['size']} x {first['size']}, seed {first['seed']}",
        f"rank of an image's twin among {first['n']} candidates by cosine, 1 is the nearest; chance is recall@k = "
        f"k / {first['n']} and a median rank of {(first['n'] + 1) / 2:g}",
        f"95 % intervals: {first['bootstrap']} draws of patients",
    ]
    width = name_width(record["encoder"] for record in records)
    for twin in dict.fromkeys(record["twin"] for record in records):
        lines += ["", f"{twin:<{2 + width}}{head}median rank (quartiles)"]
        for record in (record for record in records if record["twin"] == twin):
            recalls = [record["recall"][place] for place in shown]
            cells = [f"{cell['recall']:.3f}  {cell['low']:.3f} to {cell['high']:.3f}" for cell in recalls]
            lower, upper = record["quartiles"]
            ranks = f"{record['median_rank']:g} ({lower:g} to {upper:g})"
            ties = f", {record['n_ties']} tied" if record["n_ties"] else ""
            lines.append(f"  {record['encoder']:<{width}}" + "".join(f"{cell:<25}" for cell in cells) + ranks + ties)
    return "\n".join(lines) + "\n"
