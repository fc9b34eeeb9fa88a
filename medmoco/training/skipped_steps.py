"""Steps without a finite gradient and images that cannot be used: logged, and listed in the run folder by row."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from medmoco.data.loading.loading import Batch
from medmoco.data.loading.quarantine import QUARANTINE, Quarantine, Replacement
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split
from medmoco.training.agreement import exchange, on_first
from medmoco.training.distributed import Group
from medmoco.training.engine import TrainState
from medmoco.training.runlog import RunLog, explaining_disk_errors


@dataclass
class SkippedSteps:
    """Two of the loop's hooks."""

    order: StepOrder
    split: Split  # the training split; the order's samples are positions in it
    state: TrainState
    log: RunLog
    group: Group  # the processes that train together
    quarantine: Quarantine  # list of the unusable images

    def log_earlier(self) -> None:
        """Log how many images earlier sessions of the run have listed."""
        if self.quarantine:
            self.log.info(f"{len(self.quarantine)} images of train are in quarantine from before ({QUARANTINE})")

    def log_total(self) -> None:
        """Log how many images the whole run has listed."""
        if self.quarantine:
            self.log.info(
                f"{len(self.quarantine)} images of train could not be used: {QUARANTINE} in the run folder lists them"
            )

    def list_skipped(self, step: int, total: int, processes: list[int]) -> None:
        """Record a step that changed nothing, with the data needed to reproduce it; see `Hooks.skipped`."""
        if not processes and self.state.scaler.is_enabled():
            return  # fp16 is still adjusting its scale
        batch, split = self.order.batch(step), self.split
        self.log.append("skipped.jsonl", {
            "step": step, "epoch": batch.epoch, "processes": processes, "rows": split.rows[batch.samples].tolist(),
        })  # fmt: skip
        self.log.warn(
            f"skipped step {step} ({total} so far): its {'loss' if processes else 'gradient'} is not finite;"
            f" skipped.jsonl lists its rows of {split.csv.name}"
        )

    def replacements(self, batch: Batch) -> list[Replacement]:
        """Return the replacements in the batches of all processes."""
        texts = exchange(self.group, json.dumps([asdict(one) for one in batch.replaced]))
        return [Replacement(**one) for text in texts for one in json.loads(text)]

    def list_replaced(self, found: list[Replacement]) -> None:
        """List the images that could not be used on any process and were replaced.

        Raises:
            DataError: more than `data.bad_images_budget`.
        """
        new = self.quarantine.add(found)
        if new:
            on_first(self.group, self._write_quarantine)
        for row, reason in new:
            self.log.remark(
                f"{self.split.csv.name} row {row}: left out, another image takes its place"
                f" ({QUARANTINE} lists it): {reason}"
            )
        self.quarantine.check_budget(self.split.csv.name)

    def _write_quarantine(self) -> None:
        with explaining_disk_errors():
            self.quarantine.write()
