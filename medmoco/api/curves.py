"""Label efficiency: of probes and fine-tuning on labels, and of segmentation on masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medmoco.api.data import Log, load_config
from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    from medmoco.config import ConfigSource
    from medmoco.evaluation.features.encoder import Encoders
    from medmoco.evaluation.results import Curve


def curve(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike,
    *,
    draws: int = 5,
    finetune: bool = False,
    segment: bool = False,
    test: bool = False,
    log: Log = lambda _: None,
) -> Curve:
    """Measure label efficiency: linear probes, and on request networks trained end to end, at `evaluate.fractions`.

    The patients of a smaller fraction are a subset of those of a larger one, and the draws are the same for all
    encoders and methods. An inverse power law forecasts the scores with 2 and 5 times the labels, and the labels with
    which each control would reach the primary encoder; segmentation has no forecast.

    Args:
        config: Settings of the data and the protocol, see `load_config`; `label_fraction` and the number of a draw in
            `evaluate`, `finetune` and `segmentation` are not used.
        encoders: As of `evaluate`.
        out: Folder in which to save the results and the runs that are trained; existing runs are resumed.
        draws: Draws of patients, for fractions below 1.
        finetune: Also train end to end on the same draws of labels or classes, from the primary encoder and from
            scratch.
        segment: Also train segmentation networks on masks, from every encoder and from scratch. The settings then need
            no labels.
        test: Evaluate on the test set too, which is recorded in the ledger of the primary encoder.
        log: Receives progress messages.

    Raises:
        MedmocoError: as `evaluate`, `finetune` and `segment` do.

    Examples:
        >>> import medmoco
        >>> curve = medmoco.curve("config.yaml", "runs/phantoms", "runs/phantoms/curve", draws=1)
        >>> figure = curve.plot("Opacity")
    """
    from medmoco.evaluation.curve import curve as curve_of_labels

    settings = load_config(config)
    if not segment:
        return curve_of_labels(settings, encoders, out, draws=draws, finetune=finetune, test=test, log=log)
    from medmoco.segmentation.curve import segmentation_curve

    has_labels = settings.data.labels or settings.evaluate.classes or settings.evaluate.targets
    labels = (
        curve_of_labels(settings, encoders, out, draws=draws, finetune=finetune, test=test, log=log)
        if has_labels or finetune
        else None
    )
    return segmentation_curve(settings, encoders, Path(out), draws=draws, test=test, labels=labels, log=log)
