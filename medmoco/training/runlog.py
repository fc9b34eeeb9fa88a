"""The log of a run: metrics.jsonl, TensorBoard, log.txt, and a progress bar on a terminal or one line per interval."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from medmoco.errors import CheckpointError, first_line
from medmoco.utils.files import replacing

Record = dict[str, Any]
LOG = "log.txt"
KNN = "knn_auroc"
"""Key in metrics.jsonl of the mean kNN AUROC over the labels; that of a label is knn_auroc/LABEL."""


@contextmanager
def explaining_disk_errors() -> Iterator[None]:
    """Raise CheckpointError with the reason if a file in the run folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the run folder cannot be written: {error.strerror or first_line(error)}\n"
            "Its checkpoints are intact. Free space or fix permissions there, then continue with --resume."
        ) from None


def write_json(file: Path, content: Any) -> None:
    """Write strict JSON through a temporary file, so that a reader never sees half of it."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_warning(text: str) -> None:
    """Print a warning when no run log is open."""
    print(f"warning: {text}", file=sys.stderr)


class RunLog:
    """The log of one run; used as a context manager."""

    def __init__(self, folder: Path, *, steps: int, start_step: int, quiet: bool = False) -> None:
        """Open the logs of a run of `steps`; delete the records after `start_step`, which a resumed run repeats."""
        self.folder = folder
        self.steps = steps
        self._remarks: Counter[str] = Counter()
        from torch.utils.tensorboard import SummaryWriter  # not at the top: others need only KNN or write_json

        self._metrics = folder / "metrics.jsonl"
        with explaining_disk_errors():
            _keep_before(self._metrics, start_step)
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(), console=self._console, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=steps, completed=start_step, text="")

    def __enter__(self) -> RunLog:
        threading.excepthook = _hide_known_tracebacks
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        # The reason for the end must reach the user, even if it is a full disk, which makes this fail too.
        with suppress(CheckpointError) if error else nullcontext(), explaining_disk_errors():
            for remark, count in self._remarks.items():
                if count > 1:
                    self.warn(f"{count - 1} more images: {remark}")
            self._tensorboard.close()
        threading.excepthook = threading.__excepthook__

    def info(self, text: str) -> None:
        """Print a message and append it to log.txt."""
        self._console.print(text, markup=False)
        with explaining_disk_errors(), (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    def warn(self, text: str) -> None:
        """Log something the user should act on."""
        self.info(f"warning: {text}")

    def remark(self, notice: str) -> None:
        """Log a warning "CSV row N: notice of the image reader" once per notice, and at the end how many more."""
        kind = notice.partition(": ")[2]
        self._remarks[kind] += 1
        if self._remarks[kind] == 1:
            self.warn(notice)

    def append(self, name: str, record: Record) -> None:
        """Append a record to a file of JSON lines in the run folder."""
        with explaining_disk_errors(), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._bar.update(self._task, completed=step)

    def record(self, step: int, values: Record, *, seconds_left: float | None = None) -> None:
        """Write and show measurements after a step; numbers that are not finite become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.append(self._metrics.name, {"step": step, **clean})
        with explaining_disk_errors():
            for name, value in clean.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, step)
        text = _summary(clean)
        self._bar.update(self._task, completed=step, text=text)
        if not self._console.is_terminal:
            left = f", {timedelta(seconds=round(seconds_left))} left" if seconds_left is not None else ""
            self.info(f"step {step}/{self.steps}: {text}{left}")


def _hide_known_tracebacks(arguments: threading.ExceptHookArgs) -> None:
    """Print no traceback of a thread if the training process reports the same problem itself.

    TensorBoard's thread fails if the disk cannot be written, as does our own next record; that of DataLoader, which
    page-locks batches, fails if its data worker has ended.
    """
    if not isinstance(arguments.exc_value, OSError | EOFError):
        threading.__excepthook__(arguments)


class SilentLog(RunLog):
    """The log of all processes except the first: it writes and shows nothing."""

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    __init__ = __exit__ = info = remark = append = advance = record = _nothing

    def __enter__(self) -> RunLog:
        return self


def _summary(values: Record) -> str:
    """Return the main numbers in one line; metrics.jsonl has all of them."""
    parts = []
    if values.get("loss") is not None:  # chance is that of the contrastive part alone
        contrast = "" if values.get("contrast") is None else f", contrast {values['contrast']:.3f}"
        chance = f" (chance {values['chance']:.3f})" if "chance" in values else ""
        parts.append(f"loss {values['loss']:.3f}{contrast}{chance}")
    if values.get("reconstruction") is not None:
        parts.append(f"reconstruction {values['reconstruction']:.3f}")
    if values.get("accuracy") is not None:
        parts.append(f"accuracy {values['accuracy']:.0%}")
    if values.get("images_per_second") is not None:
        parts.append(f"{values['images_per_second']:.0f} images/s, {values['waiting']:.0%} waiting")
    parts += [f"{key} {value:.3f}" for key, value in values.items() if _is_score(key) and value is not None]
    return ", ".join(parts)


def _is_score(key: str) -> bool:
    return key.startswith(KNN) or (key.startswith("val_") and "/" not in key)


def _keep_before(metrics: Path, step: int) -> None:
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError, KeyError):  # a line that a crash cut short
            kept += [line] if json.loads(line)["step"] <= step else []
    with replacing(metrics) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
