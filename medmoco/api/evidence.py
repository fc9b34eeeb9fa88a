"""Scores of encoders and classifiers, and reports about them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from medmoco.api.data import Log, load_config
from medmoco.errors import SettingsError
from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    from medmoco.config import ConfigSource
    from medmoco.evaluation.features.encoder import Encoder
    from medmoco.evaluation.results import Curve, Evaluation, External

    Encoders: TypeAlias = Mapping[str, PathLike | Encoder] | PathLike | Encoder

UNNAMED = "run"  # how results show an encoder that was given no name


def sources_of(encoders: Encoders) -> dict[str, str]:
    """Return name -> run folder, export, weights file, or "random"."""
    named = encoders if isinstance(encoders, Mapping) else {UNNAMED: encoders}
    return {name: _source(name, encoder) for name, encoder in named.items()}


def _source(name: str, encoder: PathLike | Encoder) -> str:
    if isinstance(encoder, str | os.PathLike):
        return os.fspath(encoder)
    if encoder.provenance.kind == "random":
        return "random"
    if encoder.folder is None or encoder.provenance.kind == "file":
        raise SettingsError(f"encoders: {name!r} was loaded from a weights file; pass the file's path instead")
    return str(encoder.folder)


def evaluate(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike | None = None,
    *,
    test: bool = False,
    log: Log = lambda _: None,
) -> Evaluation:
    """Score the frozen features of encoders on the labels, next to an untrained network and raw pixels.

    Args:
        config: See `load_config`; `data.labels` names the labels.
        encoders: Run, export, weights file or "random"; or several by name, of which the first is the primary one,
            which the others are compared with.
        out: Folder for the results, which replace those of an earlier evaluation; nothing is saved without it.
        test: Evaluate on the test set too, which is recorded in the ledger of the primary encoder's run.
        log: Receives progress messages.

    Returns:
        Scores with 95 % intervals by patient, differences between encoders, operating points and calibration.

    Raises:
        SettingsError: labels or encoders cannot be scored, or a run was trained on images prepared differently.
        ManifestError: the manifest cannot be used, or test shares patients or images with the training data.
        CheckpointError: an encoder cannot be loaded.
        DataError: an image cannot be used.

    Example:
        >>> import medmoco
        >>> evaluation = medmoco.evaluate("config.yaml", {"ours": "runs/phantoms"})
        >>> evaluation.summary().columns.tolist()
        ['ours', 'untrained', 'pixels']
        >>> figure = evaluation.plot_curve("Opacity")
    """
    from medmoco.evaluation.evaluate import evaluate as score

    return score(load_config(config), sources_of(encoders), Path(out) if out else None, test=test, log=log)


def curve(
    config: ConfigSource,
    encoders: Encoders,
    out: PathLike,
    *,
    draws: int = 5,
    finetune: bool = False,
    test: bool = False,
    log: Log = lambda _: None,
) -> Curve:
    """Measure label efficiency: scores with the labels of 1 to 100 % of the training patients.

    Args:
        config: See `load_config`; `evaluate.fractions` lists the shares of the patients.
        encoders: As of `evaluate`.
        out: Folder for the results and figures.
        draws: Draws of patients for each share below 100 %, the same for all encoders.
        finetune: Also train end to end, from the primary encoder and from scratch; this takes long.
        test: Evaluate on the test set too, which is recorded in the ledger.
        log: Receives progress messages.

    Raises:
        SettingsError, ManifestError, CheckpointError, DataError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> curve = medmoco.curve("config.yaml", "runs/phantoms", "runs/phantoms/curve", draws=1)
        >>> figure = curve.plot("Opacity")
    """
    from medmoco.evaluation.curve import curve as score

    settings = load_config(config)
    return score(settings, sources_of(encoders), Path(out), draws=draws, finetuned=finetune, test=test, log=log)


def external(
    config: ConfigSource, other: ConfigSource, classifier: PathLike, out: PathLike, *, log: Log = lambda _: None
) -> External:
    """Validate a classifier externally: score it on its own test set and on that of other data.

    Args:
        config: Settings of the data that the classifier was trained on.
        other: Settings of the other data: its manifest, root and labels.
        classifier: Folder written by `evaluate` or `finetune`.
        out: Folder for the results.
        log: Receives progress messages.

    Raises:
        SettingsError, ManifestError, CheckpointError, DataError: as `evaluate`.

    Example:
        >>> import medmoco
        >>> found = medmoco.external("ours.yaml", "theirs.yaml", "runs/tuned/classifier", "external")  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """
    from medmoco.evaluation.supervised.external import external as score

    return score(load_config(config), load_config(other), Path(classifier), Path(out), log=log)


def report(
    runs: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    card: PathLike | None = None,
    pictures: Sequence[PathLike] = (),
    title: str = "",
) -> Path:
    """Write one HTML file about runs: data, training curves, scores and checklists; it works offline.

    Args:
        runs: Run folder, or several to show side by side.
        out: HTML file to write; report.html in the first folder if not given.
        card: Model card of the first run; export/MODEL_CARD.md in its folder if not given.
        pictures: PNG files to include; they may show patients.
        title: Title of the page; the names of the folders if not given.

    Returns:
        The file.

    Raises:
        SettingsError: a folder is not a run, a picture is not a PNG file, or the file cannot be written.
        CheckpointError: a file of a run is damaged.

    Example:
        >>> import medmoco
        >>> medmoco.report("runs/phantoms").name
        'report.html'
    """
    from medmoco.reporting.report import report as write

    folders = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    page = Path(out) if out else folders[0] / "report.html"
    return write(
        folders, page, card=Path(card) if card else None, pictures=[Path(file) for file in pictures], title=title
    )
