"""Two training steps and all that follows them, to learn what a run would take before it is started."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoco.api.data import Log, load_config, pack_is_missing
from medmoco.api.training import joined_group
from medmoco.errors import SettingsError, first_line
from medmoco.utils.files import free_space, size_words

if TYPE_CHECKING:
    from medmoco.config import ConfigSource, RunSettings
    from medmoco.data.manifest.manifest import Split
    from medmoco.training.context import RunContext
    from medmoco.training.distributed import Group

STEPS = 2
_IMAGES = 4  # of which features are computed


@dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Attributes:
        steps: Steps of the whole run.
        seconds: Expected duration of the whole run, without scoring and checkpoints.
        memory: Peak memory of the training process, in bytes.
        worker_memory: Peak memory of the largest data worker, in bytes; part of it is shared between processes.
        workers: Data workers of each training process.
        gpu_memory: Peak memory on the GPU, in bytes; 0 without a GPU.
        checkpoint: Size of a checkpoint, in bytes.
        warnings: Warnings and notices about the data, the settings and the machine.

    Examples:
        >>> import medmoco
        >>> found = medmoco.DryRun(1290, 2460.0, 1_600_000_000, 690_000_000, 1, 0, 85_000_000, ())
        >>> print(found.text.splitlines()[0])
        expected duration: about 41 minutes for 1,290 steps
    """

    steps: int
    seconds: float
    memory: int
    worker_memory: int
    workers: int
    gpu_memory: int
    checkpoint: int
    warnings: tuple[str, ...]

    @property
    def text(self) -> str:
        """The findings as the command line prints them."""
        from medmoco.training.checkpoint import KEPT
        from medmoco.training.duration import duration_words

        where = "the data worker" if self.workers == 1 else f"each of the {self.workers} data workers"
        worker = f", and {size_words(self.worker_memory)} in {where}" * bool(self.workers)
        return "\n".join(
            [
                f"expected duration: {duration_words(self.seconds)} for {self.steps:,} steps",
                f"peak memory: {size_words(self.memory)} in the training process{worker}",
                *([f"peak GPU memory: {size_words(self.gpu_memory)}"] if self.gpu_memory else []),
                f"disk: {size_words(self.checkpoint)} for each checkpoint, of which the last {KEPT} are kept",
                f"tried: {STEPS} training steps, a checkpoint, features of images, an export and its verification",
                *(f"warning: {warning}" for warning in self.warnings),
            ]
        )


def dry_run(
    config: ConfigSource, *, overwrite: bool = False, progress: bool = True, log: Log = lambda _: None
) -> DryRun:
    """Try a pretraining run: two steps with the real settings and images, a checkpoint, features and an export.

    All files are written to a temporary folder, which is deleted.

    Args:
        config: See `load_config`.
        overwrite: The run is going to replace the one in its folder, so do not warn about that.
        progress: Show the messages of training on stderr.
        log: Receives a line for each stage.

    Returns:
        What the whole run would take, and all warnings.

    Raises:
        SettingsError, DataError, CheckpointError, DistributedError, DivergedError, Stopped: as `pretrain` and `export`.

    Examples:
        >>> import medmoco
        >>> found = medmoco.dry_run("config.yaml", progress=False)
        >>> found.seconds < 60
        True
    """
    from medmoco.data.loading.loading import check_images
    from medmoco.data.manifest.manifest import load_manifest
    from medmoco.training.agreement import from_first
    from medmoco.training.context import prepare_context

    settings = load_config(config)
    with joined_group(settings) as group, _temporary_folder(group) as folder:
        trial, notices = _trial_settings(settings, folder / "run")
        log(f"1 of 3: {STEPS} training steps")
        _train(trial, group, progress)
        context = prepare_context(trial, group)
        memory = _peak_memory(context)

        def finish() -> dict[str, Any]:
            log("2 of 3: reload the checkpoint, compute features, and export")
            train = check_images(load_manifest(trial.data, ("train",))["train"], trial.data)
            notices.extend(_use(trial, folder, context, train))
            log("3 of 3: estimate the duration")
            notices.extend(_about_folder(settings, overwrite))
            return asdict(_found(settings, trial, context, train, notices, memory))

        found = from_first(group, finish, patiently=True)
    return DryRun(**{**found, "warnings": tuple(found["warnings"])})


@contextmanager
def _temporary_folder(group: Group) -> Iterator[Path]:
    """Create a folder on the first process, delete it in the end, and yield its path on all processes."""
    from medmoco.training.agreement import from_first

    with ExitStack() as stack:
        create = tempfile.TemporaryDirectory(prefix="medmoco-dry-run-")
        yield Path(from_first(group, lambda: stack.enter_context(create)))


def _trial_settings(settings: RunSettings, out: Path) -> tuple[RunSettings, list[str]]:
    """Return the settings of the trial, and notices about where they differ."""
    data, notices = settings.data, []
    if pack_is_missing(settings):
        data = data.model_copy(update={"pack": None})
        notices.append("data.pack does not exist yet; the run makes it first, which is not part of this estimate")
    train = settings.train.model_copy(update={"log_every": 1})
    return settings.model_copy(update={"out": out, "data": data, "train": train}), notices


def _train(trial: RunSettings, group: Group, progress: bool) -> None:
    from medmoco.evaluation.features.monitor import knn_monitor
    from medmoco.training.pretrain import pretrain

    pretrain(trial, monitor=knn_monitor, group=group, progress=progress, steps=STEPS, estimate=False)


def _peak_memory(context: RunContext) -> dict[str, int]:
    """Return the peak memory of this process and of its data workers so far, in bytes."""
    import torch

    own, workers = (
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    count = context.settings.data.workers
    gpu = torch.cuda.max_memory_reserved(context.device) if context.device.type == "cuda" else 0
    return {"memory": own, "worker_memory": workers if count else 0, "workers": count, "gpu_memory": gpu}


def _use(trial: RunSettings, folder: Path, context: RunContext, train: Split) -> list[str]:
    """Load the checkpoint, compute features of a few images, and export and verify the encoder; return warnings."""
    import numpy as np

    from medmoco.evaluation.features.encoder import load_encoder
    from medmoco.evaluation.features.features import extract
    from medmoco.exporting.export import export
    from medmoco.exporting.verify import verify

    warnings: list[str] = []
    encoder = load_encoder(trial.out, log=warnings.append)
    few = train.select(np.arange(min(_IMAGES, len(train))))
    features = extract({"trial": encoder.module}, few, trial, context.device, context.precision).features["trial"]
    if not np.isfinite(features).all():
        warnings.append(f"features are not finite after {STEPS} steps; lower train.lr or set train.precision=fp32")
    export(trial.out, folder / "export", ["safetensors"], warn=warnings.append)
    verify(folder / "export")
    return warnings


def _found(
    settings: RunSettings,
    trial: RunSettings,
    context: RunContext,
    train: Split,
    notices: list[str],
    memory: dict[str, int],
) -> DryRun:
    from medmoco.data.loading.sampler import StepOrder
    from medmoco.training.checkpoint import KEPT, checkpoint_files
    from medmoco.training.duration import seconds_per_step, warning_if_long
    from medmoco.training.run_folder import CHECKPOINTS

    steps = StepOrder(settings.seed, len(train), settings.train.global_batch_size, settings.train.epochs).steps
    seconds = seconds_per_step(train, context) or _seconds_of_last_step(trial)
    slow = warning_if_long(seconds, steps, context)
    size = checkpoint_files(trial.out / CHECKPOINTS)[-1].stat().st_size
    warnings = [*_logged(trial.out / "log.txt"), *notices, *([slow] if slow else [])]
    has_best = bool(settings.train.knn_every and settings.data.labels)
    free, needed = free_space(settings.out), (KEPT + 1 + has_best) * size  # one more while it is written
    if free < needed:
        warnings.append(f"out: the disk has {size_words(free)} free, but checkpoints need {size_words(needed)}")
    return DryRun(steps=steps, seconds=seconds * steps, checkpoint=size, warnings=tuple(warnings), **memory)


def _seconds_of_last_step(trial: RunSettings) -> float:
    from medmoco.api.training import Run

    return float(trial.train.global_batch_size / Run(trial.out).metrics["images_per_second"].dropna().iloc[-1])


def _logged(file: Path) -> list[str]:
    """Return the notices that a run logs before it begins, and its warnings."""
    texts = [line.partition(" ")[2] for line in file.read_text(encoding="utf-8").splitlines()]
    began = next(number for number, text in enumerate(texts) if text.startswith(("starting from", "pretraining")))
    notices = [text for text in texts[:began] if not text.startswith("warning: ")]
    return [*notices, *(text.removeprefix("warning: ") for text in texts if text.startswith("warning: "))]


def _about_folder(settings: RunSettings, overwrite: bool) -> list[str]:
    from medmoco.training.run_folder import StartMode, refuse_taken

    try:
        refuse_taken(settings.out, StartMode(overwrite=overwrite))
    except SettingsError as error:
        return [first_line(error)]
    return []
