"""`medmoco placement`: rank the perturbed copy of each image among all images.

For image i, the candidates are its perturbed copy and all images except i, N in total. They are ranked by the cosine of
their features with those of i; rank 1 is the nearest. Cosines whose difference is below float32 precision are ties. A
copy with t ties is equally likely to have any of t + 1 ranks: its rank is the middle one, and recall@k is the fraction
of these ranks up to k. Chance is k / N. Other images of the same patient are ordinary candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from medmoco.config import ConfigSource, RunSettings, ViewSettings, load, load_run, run_of
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.overlap import counted
from medmoco.errors import CheckpointError, ManifestError
from medmoco.evaluation.features.encoder import Encoders, load_controls, sources_of
from medmoco.evaluation.features.features import Features, extract, thumbnails
from medmoco.evaluation.features.inputs import load_splits, make_folder, on_device
from medmoco.evaluation.metrics.auroc import draw_counts
from medmoco.evaluation.records import Part
from medmoco.evaluation.scoring.table import name_width
from medmoco.inspection.perturbations import AMOUNTS, Perturbation, parse_perturbation, perturb
from medmoco.models.projectors import projector
from medmoco.plotting.figures import Line, rank_figure
from medmoco.plotting.style import save
from medmoco.training.run_folder import load_source
from medmoco.training.runlog import write_json
from medmoco.utils.files import PathLike

Ranks = NDArray[np.float64]

TIE = 1e-6
"""Cosines that differ by less are ties: the rounding error of a sum of a few thousand float32 products."""

ROWS_AT_A_TIME = 2048
"""Copies whose features are in memory at once."""

_RECALLS = (1, 5, 10, 50, 100)
_SHOWN = (1, 5, 10)  # of these, in the table
_CELLS = 2**19  # cosines in memory at once, 2 MiB, so that they fit into the cache


class Recall(Part):
    """Recall@k with its 95 % interval and its value by chance."""

    k: int
    recall: float
    low: float
    high: float
    chance: float


class Placement(Part):
    """One record of placement.json: the ranks by one encoder of the copies with one perturbation."""

    encoder: str
    twin: str
    """The perturbation."""
    split: str
    n: int
    n_patients: int
    recall: tuple[Recall, ...]
    median_rank: float
    quartiles: tuple[float, float]
    largest_rank: float
    n_ties: int
    """Number of copies with ties."""
    where: str | None
    size: int
    bootstrap: int
    seed: int


class Placed(NamedTuple):
    """The number of other images that are nearer than the copy, and of those equally near, each (N,) int64."""

    nearer: NDArray[np.int64]
    ties: NDArray[np.int64]

    def ranks(self) -> Ranks:
        """Return the middle of each copy's possible ranks, counted from 1."""
        return 1 + self.nearer + self.ties / 2

    def found(self, k: int) -> Ranks:
        """Return the probability that each copy is among the first k, with ties in random order."""
        return np.clip((k - self.nearer) / (self.ties + 1), 0, 1)


def placement(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike,
    *,
    split: str = "val",
    perturbations: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Rank the perturbed copies of every image by the features of encoders, of a random encoder and by raw pixels.

    Writes placement.json, histogram.csv (the number of copies at each rank), a figure of the ranks for each
    perturbation, and table.txt. Every image is read twice, regardless of the number of perturbations; the features of
    the split are in memory, but never all cosines.

    Args:
        config: Settings of the data, preprocessing and bootstrap, see `load_config`. `evaluate.mirror` is not applied,
            since it would make an image and its mirror image identical.
        encoders: As of `evaluate`; of a run, the embedding (after the projector) is ranked too.
        out: Folder to write.
        split: Name of the split.
        perturbations: See `parse_perturbation`; all kinds if empty. Views use the recipe of the first run, if any.
        log: Receives progress messages.

    Returns:
        The table as text.

    Raises:
        SettingsError: a perturbation is unknown, `out` cannot be written, or the run used other preprocessing.
        ManifestError: the manifest cannot be used, or has only one image.
        CheckpointError: the encoder cannot be loaded.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> table = medmoco.placement("config.yaml", "runs/phantoms", "placement", perturbations=["flip"])
        >>> "flip" in table
        True
    """
    settings, sources, out = load(config), sources_of(encoders), Path(out)
    settings.data.require_images("placement")
    chosen = [parse_perturbation(text) for text in dict.fromkeys(perturbations or AMOUNTS)]
    make_folder(out)
    rows = load_splits(settings, (split,))[split]
    for notice in rows.notices:
        log(notice)
    if len(rows) < 2:
        raise ManifestError(f"{rows.csv.name}: ranking needs at least two {split} images, but there is one; add rows")
    networks = {**load_controls(sources, settings, log), "pixels": thumbnails()}
    runs = {name: run for name, source in sources.items() if (run := run_of(Path(source)))}
    heads = {name: load_projector(Path(sources[name]), settings) for name in runs}
    recipe = load_run(next(iter(runs.values()))).views if runs else settings.views
    views = recipe.model_copy(update={"size": settings.evaluate.size or settings.views.size})
    placed = place_split(rows, networks, heads, chosen, views, settings, log)
    records = [_record(found, *key, rows, settings) for key, found in placed.items()]
    write_json(out / "placement.json", [record.model_dump() for record in records])
    _histogram(placed).to_csv(out / "histogram.csv", index=False)
    for perturbation in map(str, chosen):
        of_kind = [(encoder, found) for (encoder, kind), found in placed.items() if kind == perturbation]
        lines = [_line(name, found, colour) for colour, (name, found) in enumerate(of_kind)]
        figure = rank_figure(lines, f"{perturbation}, {rows.name}: {len(rows)} images")
        save(figure, out / f"ranks_{perturbation.replace(':', '_')}.svg")
    table = layout(records, settings.model.backbone, counted(rows))
    (out / "table.txt").write_text(table, encoding="utf-8")
    return table


def load_projector(source: Path, settings: RunSettings) -> nn.Module:
    """Return the projector of a run or of its best checkpoint, (N, F) -> (N, D), in eval mode.

    Raises:
        CheckpointError: the checkpoint does not contain it.
    """
    content = load_source(source, lambda _: None)
    prefix, method = "query_encoder.projector.", load_run(run_of(source) or source).method
    model = content.get("model", {})
    state = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    try:
        layers = projector(method, next(iter(state.values())).shape[1])
        layers.load_state_dict(state)
    except (RuntimeError, StopIteration, IndexError):
        raise CheckpointError(
            f"the checkpoint of step {content['step']} does not contain the projector of the run's settings"
        ) from None
    return layers.eval()


class _OnView(nn.Module):
    """Applies an encoder to one of V views, (B, V * C, S, S) -> (B, F)."""

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
    perturbations: Sequence[Perturbation],
    views: ViewSettings,
    settings: RunSettings,
    log: Callable[[str], None],
) -> dict[tuple[str, str], Placed]:
    """Rank the perturbed copies of every row by each encoder.

    Args:
        split: N rows.
        encoders: Encoders (B, C, S, S) -> (B, F) by name.
        heads: Projectors by name of the encoder; their output is ranked as "NAME embedding".
        perturbations: Perturbations.
        views: Settings of the views, see `perturb`.
        settings: Settings of the data.
        log: Receives progress messages.

    Returns:
        The placements by encoder and perturbation.
    """
    (device,) = {on_device(module, settings) for module in encoders.values()}
    log(f"extracting features of {split.name}: {len(split)} images")
    plain = extract(encoders, split, settings, device).features
    bank = {name: values.to(device) for name, values in _unit(plain, heads).items()}
    parts: dict[tuple[str, str], list[Placed]] = {
        (name, str(perturbation)): [] for name in bank for perturbation in perturbations
    }
    for start in range(0, len(split), ROWS_AT_A_TIME):
        block = split.select(np.arange(start, min(start + ROWS_AT_A_TIME, len(split))))
        log(f"ranking perturbed copies of images {start + 1} to {start + len(block)}")
        make = partial(perturb, perturbations=perturbations, views=views, rows=block.rows, seed=settings.seed)
        on_view = {
            f"{name} {perturbation}": _OnView(module, view, settings.data.channel_count)
            for name, module in encoders.items()
            for view, perturbation in enumerate(perturbations)
        }
        features = extract(on_view, block, settings, device, make=make).features
        of_copies = [
            _unit({name: features[f"{name} {perturbation}"] for name in encoders}, heads)
            for perturbation in perturbations
        ]
        for name, images in bank.items():
            placed = place(images, start, [values[name].to(device) for values in of_copies])
            for perturbation, part in zip(perturbations, placed, strict=True):
                parts[name, str(perturbation)].append(part)
    return {key: Placed(*map(np.concatenate, zip(*blocks, strict=True))) for key, blocks in parts.items()}


def _unit(features: Mapping[str, Features], heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return features scaled to unit length, and the embeddings of encoders that have a projector."""
    unit: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, values in features.items():
            unit[name] = normalize(torch.from_numpy(values), dim=1)
            if name in heads:
                unit[f"{name} embedding"] = normalize(heads[name](torch.from_numpy(values)), dim=1)
    return unit


def place(images: Tensor, start: int, perturbations: Sequence[Tensor]) -> list[Placed]:
    """Return, for M images, how many others are nearer than their copies, computed in blocks of cosines.

    Args:
        images: (N, F) unit L2 norm, all images.
        start: Position of the first of the M images.
        perturbations: Features of the copies, (M, F) unit L2 norm for each perturbation.
    """
    queries = images[start : start + len(perturbations[0])]
    own = [(queries * perturbation).sum(1, keepdim=True) for perturbation in perturbations]  # (M, 1)
    nearer, near = (
        torch.zeros(len(perturbations), len(queries), dtype=torch.int64, device=images.device) for _ in range(2)
    )
    step = max(1, _CELLS // len(queries))
    for first in range(0, len(images), step):
        cosines = queries @ images[first : first + step].T  # (M, step)
        same = torch.arange(start, start + len(queries), device=images.device)
        same = same[(same >= first) & (same < first + step)]
        cosines[same - start, same - first] = -torch.inf
        above = torch.empty_like(cosines)  # ones and zeros as floats, which are summed ten times faster than booleans
        for kind, cosine in enumerate(own):
            nearer[kind] += torch.gt(cosines, cosine + TIE, out=above).sum(1).long()
            near[kind] += torch.ge(cosines, cosine - TIE, out=above).sum(1).long()
    return [Placed(*pair) for pair in zip(nearer.cpu().numpy(), (near - nearer).cpu().numpy(), strict=True)]


# Output


def _record(placed: Placed, encoder: str, perturbation: str, split: Split, settings: RunSettings) -> Placement:
    ranks, count = placed.ranks(), len(split)
    recalls = [k for k in _RECALLS if k < count]
    hits = np.stack([placed.found(k) for k in recalls])
    lowest, highest = _intervals(hits, split.patients, settings)
    lower, median, upper = np.percentile(ranks, [25, 50, 75])
    return Placement(
        encoder=encoder,
        twin=perturbation,
        split=split.name,
        n=count,
        n_patients=np.unique(split.patients).size,
        recall=tuple(
            Recall(k=k, recall=value, low=low, high=high, chance=k / count)
            for k, value, low, high in zip(recalls, hits.mean(1).tolist(), lowest, highest, strict=True)
        ),
        median_rank=median,
        quartiles=(lower, upper),
        largest_rank=ranks.max(),
        n_ties=int((placed.ties > 0).sum()),
        where=settings.evaluate.where,
        size=settings.evaluate.size or settings.views.size,
        bootstrap=settings.evaluate.bootstrap,
        seed=settings.seed,
    )


def _intervals(hits: Ranks, patients: NDArray[np.int64], settings: RunSettings) -> tuple[list[float], list[float]]:
    """Return 95 % intervals of the means of K rows of values, (K, N), by bootstrap over patients.

    If all values are 0 or all are 1, so are all bootstrap samples; then the interval is the exact one of Clopper and
    Pearson 1934 (doi:10.1093/biomet/26.4.404), with every patient as one case.
    """
    names, codes = np.unique(patients, return_inverse=True)
    totals = np.stack([np.bincount(codes, row) for row in hits] + [np.bincount(codes)], axis=1)  # (patients, K + 1)
    draws = settings.evaluate.bootstrap
    sums = np.empty((draws, len(hits) + 1))
    for block, counts in draw_counts(names.size, draws=draws, seed=settings.seed, cells=names.size):
        sums[block] = counts @ totals
    low, high = np.percentile(sums[:, :-1] / sums[:, -1:], [2.5, 97.5], axis=0)
    bound = 0.025 ** (1 / names.size)
    low, high = np.where(hits.min(1) == 1, bound, low), np.where(hits.max(1) == 0, 1 - bound, high)
    return low.tolist(), high.tolist()


def _histogram(placed: Mapping[tuple[str, str], Placed]) -> pd.DataFrame:
    """Return the number of images at each rank that occurs."""
    frames = []
    for (encoder, perturbation), found in placed.items():
        ranks, counts = np.unique(found.ranks(), return_counts=True)
        frames.append(pd.DataFrame({"encoder": encoder, "twin": perturbation, "rank": ranks, "images": counts}))
    return pd.concat(frames)


def _line(name: str, placed: Placed, colour: int) -> Line:
    """Return the cumulative distribution of the copies' ranks, from rank 1 to the last."""
    ranks, counts = np.unique(placed.ranks(), return_counts=True)
    shares = np.cumsum(counts) / counts.sum()
    if ranks[0] > 1:
        ranks, shares = np.insert(ranks, 0, 1), np.insert(shares, 0, 0)
    if ranks[-1] < len(placed.nearer):
        ranks, shares = np.append(ranks, len(placed.nearer)), np.append(shares, 1)
    return Line(name, ranks.tolist(), shares.tolist(), colour=colour, stepped=True)


def layout(records: Sequence[Placement], backbone: str, images: str) -> str:
    """Return records as text, with a block for each perturbation and a line for each encoder.

    Args:
        records: At least one.
        backbone: Name of the network.
        images: Number of images and patients, in words.
    """
    first = records[0]
    where = f", where {first.where}" if first.where else ""
    head = "".join(f"{f'recall@{entry.k}':<25}" for entry in first.recall if entry.k in _SHOWN)
    lines = [
        f"{backbone}, {first.split}: {images}{where}, {first.size} x {first.size}, seed {first.seed}",
        f"rank of an image's perturbed copy among {first.n} candidates by cosine, 1 is the nearest; chance is "
        f"recall@k = k / {first.n} and a median rank of {(first.n + 1) / 2:g}",
        f"95 % intervals: {first.bootstrap} bootstrap samples of patients",
    ]
    width = name_width(record.encoder for record in records)
    for perturbation in dict.fromkeys(record.twin for record in records):
        lines += ["", f"{perturbation:<{2 + width}}{head}median rank (quartiles)"]
        for record in (record for record in records if record.twin == perturbation):
            shown = (entry for entry in record.recall if entry.k in _SHOWN)
            cells = [f"{entry.recall:.3f}  {entry.low:.3f} to {entry.high:.3f}" for entry in shown]
            ranks = f"{record.median_rank:g} ({record.quartiles[0]:g} to {record.quartiles[1]:g})"
            ties = f", {record.n_ties} tied" if record.n_ties else ""
            lines.append(f"  {record.encoder:<{width}}" + "".join(f"{cell:<25}" for cell in cells) + ranks + ties)
    return "\n".join(lines) + "\n"
