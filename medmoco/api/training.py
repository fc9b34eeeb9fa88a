"""Pretraining, fine-tuning, detection, segmentation and search."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoco.api.data import Log, load_config, pack_if_missing
from medmoco.utils.files import PathLike

if TYPE_CHECKING:
    import pandas as pd

    from medmoco.config import ConfigSource, RunSettings
    from medmoco.detection.scoring import Detected
    from medmoco.evaluation.features.encoder import Encoder
    from medmoco.evaluation.supervised.classifier import Classifier
    from medmoco.segmentation.scores.scoring import Segmented
    from medmoco.training.distributed import Group


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A run folder. It stands for its path wherever a path is taken, such as `medmoco.load_encoder(run)`.

    Attributes:
        folder: The run folder.
        settings: The settings of the run.

    Examples:
        >>> import medmoco
        >>> run = medmoco.Run("runs/phantoms")
        >>> run
        Run('runs/phantoms', done, step 8 of 8)
        >>> "loss" in run.metrics
        True
        >>> run.encoder.feature_dim
        96
        >>> run.best.name
        'best'
    """

    folder: Path
    settings: RunSettings = field(compare=False)

    def __init__(self, folder: PathLike) -> None:
        """Open a run folder.

        Args:
            folder: Its path.

        Raises:
            CheckpointError: it is not a run folder.
            SettingsError: its config.yaml cannot be read.
        """
        from medmoco.config import load_run

        object.__setattr__(self, "folder", Path(folder))
        object.__setattr__(self, "settings", load_run(self.folder))

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json: `state` ("running", "done", "stopped" or "failed"), `step` and `steps`."""
        try:
            content: dict[str, Any] = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content

    @property
    def metrics(self) -> pd.DataFrame:
        """The content of metrics.jsonl: a row for every `train.log_every` steps, and for the scores of an epoch."""
        import pandas as pd

        file = self.folder / "metrics.jsonl"
        return pd.read_json(file, lines=True) if file.is_file() else pd.DataFrame()

    @property
    def best(self) -> Path | None:
        """The path of the checkpoint with the best kNN score, to use as an encoder; None if there is none."""
        from medmoco.config import BEST

        folder = self.folder / BEST
        return folder if any(folder.glob("*.pt")) else None

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the newest checkpoint."""
        from medmoco.evaluation.features.encoder import load_encoder

        return load_encoder(self)

    def __repr__(self) -> str:
        status = self.status
        how = f", {status['state']}, step {status['step']} of {status['steps']}" if status else ""
        return f"Run({str(self.folder)!r}{how})"


@contextmanager
def joined_group(settings: RunSettings) -> Iterator[Group]:
    """Join the processes that torchrun or srun started, if any."""
    from medmoco.training.launch import find_placement, joined

    with joined(settings.train, find_placement(os.environ)) as group:
        yield group


def pretrain(
    config: ConfigSource,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    progress: bool = True,
    log: Log = lambda _: None,
) -> Run:
    """Pretrain an encoder on the training split, without labels.

    One process trains, or all that torchrun or srun started. `medmoco pretrain --devices N` starts several itself.

    Args:
        config: See `load_config`.
        resume: Continue the run in the folder from its newest checkpoint, if there is one.
        overwrite: Replace the run in the folder.
        allow_change: Resume even if the settings or the manifest have changed.
        progress: Show messages and a progress bar on stderr; log.txt in the run folder has the messages either way.
        log: Receives messages about a pack that is made first.

    Returns:
        The run.

    Raises:
        SettingsError: settings contradict each other or the data, or the folder holds another run.
        DataError, CheckpointError, DistributedError, DivergedError: also recorded in status.json.
        Stopped: a signal asked the run to stop; it is saved and can be resumed.

    Examples:
        >>> import medmoco
        >>> run = medmoco.pretrain("config.yaml", resume=True, progress=False)
        >>> run.status["state"]
        'done'
    """
    from medmoco.evaluation.features.monitor import knn_monitor
    from medmoco.training.agreement import on_first
    from medmoco.training.pretrain import pretrain as train
    from medmoco.training.run_folder import StartMode

    settings = load_config(config)
    with joined_group(settings) as group:
        on_first(group, lambda: pack_if_missing(settings, log), patiently=True)
        start = StartMode(resume, overwrite, allow_change)
        train(settings, monitor=knn_monitor, start=start, group=group, progress=progress)
    return Run(settings.out)


def finetune(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    progress: bool = True,
) -> Classifier:
    """Train the encoder and a classifier on the labels of train; the best epoch on val is kept.

    Args:
        config: See `load_config`; `finetune` describes the training.
        encoder: Run, weights file, or "random" to train from scratch.
        out: Run folder.
        resume: Continue the run in the folder from its newest checkpoint, if there is one.
        overwrite: Replace the run in the folder.
        allow_change: Resume even if the settings or the manifest have changed.
        progress: Show messages and a progress bar on stderr.

    Returns:
        The classifier of the best epoch, which is also in `out/classifier`.

    Raises:
        SettingsError, DataError, CheckpointError, DistributedError, DivergedError, Stopped: as `pretrain`.

    Examples:
        >>> import medmoco
        >>> config = medmoco.load_config("config.yaml", finetune={"epochs": 1, "warmup_epochs": 0})
        >>> medmoco.finetune(config, "runs/phantoms", "runs/tuned", progress=False).labels
        ('Opacity', 'Interstitial')
    """
    from medmoco.evaluation.supervised.classifier import load_classifier
    from medmoco.evaluation.supervised.finetune import CLASSIFIER
    from medmoco.evaluation.supervised.finetune import finetune as train
    from medmoco.training.run_folder import StartMode

    settings, folder = load_config(config), Path(out)
    with joined_group(settings) as group:
        start = StartMode(resume, overwrite, allow_change)
        train(settings, os.fspath(encoder), folder, start=start, group=group, progress=progress)
    return load_classifier(folder / CLASSIFIER, settings)


def detect(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    test: bool = False,
    against: PathLike | None = None,
    pictures: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    progress: bool = True,
) -> Detected | None:
    """Train a detector on boxes with the encoder as its backbone, and score it by average precision.

    Args:
        config: See `load_config`; `detection` describes the training, `detection.boxes` names the boxes.
        encoder: Run, weights file, or "random" to train from scratch.
        out: Run folder.
        test: Evaluate on the test set too, which is recorded in the ledger.
        against: Run folder of another detector on the same images, for paired differences.
        pictures: PNG file to write with boxes in a few images; it shows patients.
        resume: Continue the run in the folder from its newest checkpoint, if there is one.
        overwrite: Replace the run in the folder.
        allow_change: Resume even if the settings, the manifest or the boxes have changed.
        progress: Show messages and a progress bar on stderr.

    Returns:
        The scores; None on all processes but the first.

    Raises:
        SettingsError, DataError, CheckpointError, DistributedError, DivergedError, Stopped: as `pretrain`.

    Examples:
        >>> import medmoco
        >>> boxes = {"boxes": "phantoms/boxes.csv"}
        >>> config = medmoco.load_config("config.yaml", detection=boxes)
        >>> found = medmoco.detect(config, "runs/phantoms", "runs/detector", test=True)  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """
    from medmoco.detection.detect import detect as train
    from medmoco.evaluation.scoring.trained import Scoring
    from medmoco.training.run_folder import StartMode

    settings = load_config(config)
    scoring = Scoring(test, Path(against) if against else None, Path(pictures) if pictures else None)
    with joined_group(settings) as group:
        start = StartMode(resume, overwrite, allow_change)
        return train(
            settings, os.fspath(encoder), Path(out), scoring=scoring, start=start, group=group, progress=progress
        )


def segment(
    config: ConfigSource,
    encoder: PathLike,
    out: PathLike,
    *,
    test: bool = False,
    against: PathLike | None = None,
    pictures: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    progress: bool = True,
) -> Segmented | None:
    """Train a segmentation network on masks with the encoder under a decoder, and score it by Dice and surfaces.

    Args:
        config: See `load_config`; `segmentation` describes the training, the column Mask of the manifest has the masks.
        encoder: Run, weights file, or "random" to train from scratch.
        out: Run folder.
        test: Evaluate on the test set too, which is recorded in the ledger.
        against: Run folder of another segmentation on the same images, for paired differences.
        pictures: PNG file to write with contours in a few images; it shows patients.
        resume: Continue the run in the folder from its newest checkpoint, if there is one.
        overwrite: Replace the run in the folder.
        allow_change: Resume even if the settings, the manifest or the masks have changed.
        progress: Show messages and a progress bar on stderr.

    Returns:
        The scores; None on all processes but the first.

    Raises:
        SettingsError, DataError, CheckpointError, DistributedError, DivergedError, Stopped: as `pretrain`.

    Examples:
        >>> import medmoco
        >>> config = medmoco.load_config("config.yaml", segmentation={"label_fraction": 0.1})
        >>> found = medmoco.segment(config, "runs/phantoms", "runs/masks", test=True)  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """
    from medmoco.evaluation.scoring.trained import Scoring
    from medmoco.segmentation.segment import segment as train
    from medmoco.training.run_folder import StartMode

    settings = load_config(config)
    scoring = Scoring(test, Path(against) if against else None, Path(pictures) if pictures else None)
    with joined_group(settings) as group:
        start = StartMode(resume, overwrite, allow_change)
        return train(
            settings, os.fspath(encoder), Path(out), scoring=scoring, start=start, group=group, progress=progress
        )


def tune(
    config: ConfigSource,
    out: PathLike | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = lambda _: None,
) -> str:
    """Search `tune.space` for the settings whose features score best on val, one pretraining run after the other.

    Args:
        config: See `load_config`.
        out: Folder of the search; the run folder's name with "-tune" appended if not given.
        resume: Continue the search in the folder.
        overwrite: Replace the search in the folder.
        log: Receives a line for each trial.

    Returns:
        The table of trials with a verdict; empty on all processes but the first. best.yaml in the folder holds the best
        settings.

    Raises:
        SettingsError: the space is empty, or has values that cannot be tried.
        DataError, CheckpointError, DistributedError, Stopped: as `pretrain`.

    Examples:
        >>> import medmoco
        >>> config = medmoco.load_config("config.yaml", tune={"space": {"train.lr": [0.01, 0.1]}, "trials": 2})
        >>> print(medmoco.tune(config))  # doctest: +SKIP
    """
    from medmoco.training.agreement import on_first
    from medmoco.training.run_folder import StartMode
    from medmoco.tuning.tune import tune as search

    settings = load_config(config)
    folder = Path(out) if out else settings.out.with_name(f"{settings.out.name}-tune")
    with joined_group(settings) as group:
        on_first(group, lambda: pack_if_missing(settings, log), patiently=True)
        return search(settings, folder, start=StartMode(resume, overwrite), log=log, group=group)
