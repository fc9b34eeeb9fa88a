"""What goes wrong with steps and images while a run goes on, told and listed in its folder by row."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from medmoco.data.loading.loading import Batch
from medmoco.data.loading.quarantine import QUARANTINE, Quarantine, Replacement
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split
from medmoco.training.distributed import Group
from medmoco.training.engine import TrainState
from medmoco.training.runlog import RunLog, saying_what_disk_refuses


@dataclass
class Mishaps:
    """Two of the loop's hooks.

    Attributes:
        order: Of the run.
        split: That the order's samples are positions in.
        state: Of the run.
        log: Of the run.
        group: The processes that train together.
        quarantine: Where unusable images are listed.
    """

    order: StepOrder
    split: Split
    state: TrainState
    log: RunLog
    group: Group
    quarantine: Quarantine

    def say_what_is_known(self) -> None:
        """Say what a run that is resumed has listed before."""
        if self.quarantine:
            self.log.info(f"{len(self.quarantine)} images of train are in quarantine from before ({QUARANTINE})")

    def say_what_came(self) -> None:
        """Say at the end what was listed."""
        if self.quarantine:
            self.log.info(
                f"{len(self.quarantine)} images of train could not be used: {QUARANTINE} in the run folder lists them"
            )

    def skipped(self, step: int, total: int, processes: list[int]) -> None:
        """Record a step that did nothing, with what is needed to do it again."""
        if not processes and self.state.scaler.is_enabled():
            return  # fp16 is still finding its scale
        batch, split = self.order.batch(step), self.split
        self.log.append("skipped.jsonl", {
            "step": step, "epoch": batch.epoch, "processes": processes, "rows": split.rows[batch.samples].tolist(),
        })  # fmt: skip
        self.log.warn(
            f"step {step} is skipped, the {total}. so far: its {'loss' if processes else 'gradient'} is not finite;"
            f" the rows of {split.csv.name} are in skipped.jsonl"
        )

    def replacements(self, batch: Batch) -> list[Replacement]:
        """Return where a batch of all processes holds other images than it should."""
        texts = self.group.tell(json.dumps([asdict(one) for one in batch.replaced]))
        return [Replacement(**one) for text in texts for one in json.loads(text)]

    def replaced(self, found: list[Replacement]) -> None:
        """List the images that cannot be used and that a batch holds others for, of all processes.

        Raises:
            DataError: more than `data.bad_images_budget`.
        """
        new = self.quarantine.add(found)
        if new:
            self.group.first(self._write_quarantine)
        for row, reason in new:
            self.log.remark(
                f"{self.split.csv.name} row {row}: left out, another image takes its place"
                f" ({QUARANTINE} lists it): {reason}"
            )
        self.quarantine.check_budget(self.split.csv.name)

    def _write_quarantine(self) -> None:
        with saying_what_disk_refuses():
            self.quarantine.write()
