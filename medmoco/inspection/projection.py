"""`medmoco projection`: project features to two dimensions, coloured by a label.

Neighbouring points have similar features. Distances between groups and the sizes of groups have no meaning.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.preprocessing import normalize

from medmoco.config import ConfigSource, load
from medmoco.data.manifest.manifest import Split
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.features.inputs import feature_cache, features_of, find_label, load_splits, make_folder
from medmoco.utils.files import PathLike

MOST = 4000
"""Largest number of points; more take minutes and overlap."""
FEWEST = 10
"""Smallest number of images to project."""

_COMPONENTS = 50  # Source: van der Maaten and Hinton 2008 (JMLR 9), section 4.2
_PERPLEXITY = 30.0  # Source: as above, between 5 and 50
_NEIGHBOURS = 15  # of trustworthiness

# Colours of Okabe and Ito, safe for colour-blind readers; shapes and fills that remain distinct in black and white.
_STYLES = {
    "missing": {"marker": "x", "color": "#999999", "linewidths": 0.6, "s": 10},
    "0": {"marker": "o", "facecolors": "none", "edgecolors": "#0072B2", "linewidths": 0.7, "s": 14},
    "1": {"marker": "^", "color": "#D55E00", "linewidths": 0, "s": 18},
}


def projection(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    split: str = "val",
    colour: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Project a split's features to two dimensions by PCA and t-SNE.

    Writes projection.csv (row, x, y and the label values), projection.svg and projection.png.

    Args:
        config: Settings of the data and of preprocessing, with the seed; see `load_config`.
        encoder: A run folder, a weights file, or "random".
        out: Folder to write.
        split: Name of the split.
        colour: Label by which to colour the points; by default the first, if there is one.
        log: Receives progress messages.

    Returns:
        Lines of text that describe the result.

    Raises:
        SettingsError: the label does not exist, `out` cannot be written, or the run used other preprocessing.
        ManifestError: the manifest cannot be used, or has too few images.
        CheckpointError: the encoder cannot be loaded.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> print(medmoco.projection("config.yaml", "runs/phantoms", "projection", split="train"))  # doctest: +SKIP
    """
    settings, out = load(config), Path(out)
    label = find_label(colour, tuple(settings.data.labels))
    make_folder(out)
    loaded = load_splits(settings, (split,))[split]
    if len(loaded) < FEWEST:
        raise ManifestError(
            f"{loaded.csv.name}: {len(loaded)} {split} images are too few; at least {FEWEST} are needed"
        )
    sample = _sample(loaded, settings.seed)
    model = load_encoder(encoder, settings, log=log).as_evaluated
    cache = feature_cache(os.fspath(encoder), out, log)
    features = features_of({"encoder": model}, sample, settings, cache, log).features["encoder"]
    log("computing the projection")
    points, trust = project(features, settings.seed)
    labels = dict(zip(sample.label_names, sample.labels.T, strict=True))
    table = pd.DataFrame({"row": sample.rows, "x": points[:, 0], "y": points[:, 1], **labels})
    table.to_csv(out / "projection.csv", index=False, float_format="%.5g")
    size = f"{len(sample)} images" if sample is loaded else f"{len(sample)} of {len(loaded)} images, drawn at random"
    where = f", where {settings.evaluate.where}" if settings.evaluate.where else ""
    quality = f"trustworthiness {trust:.3f} (1 is best, {_NEIGHBOURS} neighbours)"
    _draw(points, labels.get(label or ""), label, f"{split}: {size}{where}\nPCA, then t-SNE; {quality}", out)
    return f"{split}: {size}{where}; {quality}\nprojection.csv, projection.svg and projection.png are in {out}"


def project(features: Features, seed: int) -> tuple[NDArray[np.float32], float]:
    """Return positions in the plane, (N, 2), and their trustworthiness, at most 1.

    Features are first scaled to unit length, so that near means a large cosine, as for kNN.

    Source: van der Maaten and Hinton 2008 (JMLR 9, 2579); trustworthiness, Venna and Kaski 2001.

    Args:
        features: (N, F), N at least FEWEST.
        seed: Random seed of PCA and t-SNE.
    """
    unit = normalize(features.astype(np.float64))
    components = min(_COMPONENTS, *unit.shape)
    reduced = PCA(components, random_state=seed).fit_transform(unit)
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return points, float(trustworthiness(unit, points, n_neighbors=min(_NEIGHBOURS, (len(unit) - 1) // 2)))


def _sample(split: Split, seed: int) -> Split:
    """Return the split itself, or MOST of its rows drawn at random."""
    if len(split) <= MOST:
        return split
    return split.select(np.sort(np.random.default_rng(seed).choice(len(split), MOST, replace=False)))


def _draw(
    points: NDArray[np.float32], values: NDArray[np.float32] | None, label: str | None, title: str, out: Path
) -> None:
    """Write the figure; `values` is (N,) 1, 0 or nan, or None if there is no label."""
    figure = Figure(figsize=(6, 6.4), layout="constrained")
    axes = figure.add_subplot()
    values = np.full(len(points), np.nan) if values is None else values
    groups = {"missing": np.isnan(values), "0": values == 0, "1": values == 1}
    for name, chosen in groups.items():
        if chosen.any():
            text = f"{label} {name} (n = {chosen.sum()})" if label else f"n = {chosen.sum()}"
            style: dict[str, Any] = _STYLES[name]
            axes.scatter(*points[chosen].T, label=text, **style)
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.title.set_fontsize(9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    try:
        # With a fixed salt and no date, the same points give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "medmoco", "svg.fonttype": "none"}):
            figure.savefig(out / "projection.svg", metadata={"Date": None})
        figure.savefig(out / "projection.png", dpi=150)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
