"""The kNN monitor: how good the features are while pretraining is still running."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.features import extract
from medmoco.evaluation.features.probes import Floats, knn_auroc, knn_scores
from medmoco.models.backbones import Backbone
from medmoco.training.device import choose_precision
from medmoco.training.runlog import KNN


def validation_scores(
    backbone: Backbone, splits: dict[str, Split], settings: RunSettings, stop_asked: Callable[[], bool]
) -> Floats:
    """Return the kNN scores of `val`, (M, L), from the nearest neighbours in `train`.

    Raises:
        Stopped: the run is to stop; scoring again after resuming costs less than being killed.
    """
    device = next(backbone.parameters()).device
    precision, _ = choose_precision(settings.train, device)
    features = {
        name: extract({"encoder": backbone}, splits[name], settings, device, precision, stop_asked).features["encoder"]
        for name in ("train", "val")
    }
    targets = splits["train"].labels.astype(np.float64)
    return knn_scores(features["train"], targets, features["val"], settings.evaluate.neighbours)


def knn_monitor(
    backbone: Backbone, splits: dict[str, Split], settings: RunSettings, stop_asked: Callable[[], bool]
) -> dict[str, float]:
    """Return the AUROC of kNN on `val` by label, as "knn_auroc/LABEL"; nan for a label with one class.

    The test set is never used. Raises as `validation_scores`.
    """
    scores = validation_scores(backbone, splits, settings, stop_asked)
    values = knn_auroc(scores, *(splits[name].labels.astype(np.float64) for name in ("train", "val")))
    return {f"{KNN}/{label}": value for label, value in zip(splits["train"].label_names, values, strict=True)}
