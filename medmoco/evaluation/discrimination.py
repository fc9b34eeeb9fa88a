"""Curves of discrimination: receiver operating characteristic, and precision against recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, auroc, average_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["roc", "precision_recall"]


def discrimination(kind: Kind, targets: Floats, scores: Floats) -> tuple[Floats, Floats, float]:
    """Return x, in ascending order, and y of a ROC or precision-recall curve, and the AUROC or average precision.

    Args:
        kind: roc or precision_recall.
        targets: (N,), 1 or 0, both classes present.
        scores: (N,), any unit, higher is more positive.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # not at the top: importing it takes a second

    if kind == "roc":
        false, true, _ = roc_curve(targets, scores)
        return false, true, auroc(targets, scores)
    precision, recall, _ = precision_recall_curve(targets, scores)
    return recall[::-1], precision[::-1], average_precision(targets, scores)


def discrimination_figure(
    kind: Kind, groups: Mapping[str, tuple[Floats, Floats]], points: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Draw a curve for each group.

    Args:
        kind: roc or precision_recall.
        groups: Name -> targets (N,) and scores (N,).
        points: Operating points for a ROC, (1 - specificity, sensitivity).
    """
    from medmoco.plotting.figures import Line, pr_figure, roc_figure, thinned  # not at the top, as in results.py

    lines = []
    for number, (name, (targets, scores)) in enumerate(groups.items()):
        x, y, value = discrimination(kind, targets, scores)
        lines.append(Line(f"{name} {value:.3f}", *thinned(x, y), colour=number))
    if kind == "roc":
        return roc_figure(lines, points)
    return pr_figure(lines, float(np.mean(next(iter(groups.values()))[0])))
