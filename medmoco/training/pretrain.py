"""Wires a pretraining run: settings -> split, views, MoCo, loop, run folder."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from medmoco.config import RunSettings, as_tree, to_yaml
from medmoco.data.loading import check_images, training_batches
from medmoco.data.manifest import Split, load_manifest
from medmoco.data.order import StepOrder
from medmoco.data.overlap import overlap_notices
from medmoco.errors import CheckpointError, MedmocoError, SettingsError, Stopped
from medmoco.models.backbones import Backbone
from medmoco.models.moco import MoCo
from medmoco.training.checkpoint import load_checkpoint, portable_settings, save_checkpoint
from medmoco.training.contrast import Contrast, batch_norm_groups, check_sizes, create_state, traffic
from medmoco.training.device import choose_device, choose_precision
from medmoco.training.distributed import ALONE, Group
from medmoco.training.engine import Hooks, TrainState, fit
from medmoco.training.runlog import RunLog, SilentLog, print_warning, write_json

Monitor = Callable[[Backbone, dict[str, Split], RunSettings, Callable[[], bool]], dict[str, float]]
"""Scores a backbone on the splits during training; given by the caller, since scoring lies above training. Asks the
last argument now and then whether the run shall stop, and raises Stopped then."""

_LIBRARIES = ("medmoco", "torch", "torchvision", "timm", "numpy", "cv2", "pydicom")

# What may change between a stop and --resume: it alters neither the views nor the weights.
_FREE_TO_CHANGE = ("out", "data.root", "data.manifest", "data.pack", "data.max_bytes", "data.max_frames",
                   "data.decode_", "data.allow_symlinks", "data.workers", "model.weights",
                   "train.log_every", "train.checkpoint_every", "train.knn_every", "evaluate.")  # fmt: skip


def pretrain(
    settings: RunSettings,
    *,
    monitor: Monitor,
    resume: bool = False,
    overwrite: bool = False,
    group: Group = ALONE,
) -> None:
    """Pretrain an encoder on the training split and leave a run folder.

    Args:
        settings: Of the run.
        monitor: Scores the backbone every `train.knn_every` epochs.
        resume: Go on from the newest checkpoint in the folder.
        overwrite: Delete a run that is in the folder.
        group: The processes that train together; the first of them writes and speaks.

    Raises:
        SettingsError: the queue or the batch exceeds the training split; the folder holds another run.
        CheckpointError, DataError, DivergedError, Stopped: see there; status.json then says which.
    """
    device = choose_device(settings.train)
    precision, why = choose_precision(settings.train, device)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    with group.one_fate():
        loaded = load_manifest(settings.data, ("train", "val") if settings.data.labels else ("train",))
        splits = {name: check_images(split, settings.data) for name, split in loaded.items()}
        check_sizes(len(splits["train"]), settings, group.size)
    digest = splits["train"].sha256

    saved: dict[str, Any] | None = None
    if resume:
        with group.one_fate():
            saved = load_checkpoint(settings.out / "checkpoints", print_warning if group.is_first else _ignore)
            _refuse_changes(settings, saved, digest)
    else:
        group.first(lambda: _claim_folder(settings.out, overwrite))
    state = create_state(settings, device, precision, group)
    model = state.model
    assert isinstance(model, MoCo)
    if saved:
        saved["model"]["queue"] = model.own_part(saved["model"]["queue"])
        state.restore(saved)
    order = StepOrder(settings.seed, len(splits["train"]), settings.train.global_batch_size, settings.train.epochs)
    group.first(lambda: _describe_run(settings, device, precision, digest, group.size))

    open_log = RunLog if group.is_first else SilentLog
    with open_log(settings.out, steps=order.steps, start_step=state.step) as log:
        for notice in [*splits["train"].notices, *overlap_notices(splits)]:
            log.say(notice)
        log.say(
            f"{'resuming' if resume else 'pretraining'} {settings.model.backbone} by {settings.method.name}"
            f" on {len(splits['train'])} images, {order.steps} steps of {order.batch_size}, from step {state.step},"
            f" {f'{group.size} processes on ' if group.size > 1 else ''}{device.type}, {precision} ({why})"
        )
        _say_groups(settings, group, log)
        run = _Run(settings, splits, order, state, model, digest, log, monitor, group, state.step)
        try:
            task = Contrast(model, settings, device, precision, group)
            batches = training_batches(splits["train"], settings, order, state.step, group.share)
            fit(task, batches, state, order, settings.train, log, run.hooks(), group)
        except MedmocoError as error:
            run.write_status("stopped" if isinstance(error, Stopped) else "failed", error)
            raise
        run.write_status("done")
        log.say(f"done: {order.steps} steps; the encoder is in the run folder's checkpoints/")


def _ignore(_: str) -> None:
    pass


def _say_groups(settings: RunSettings, group: Group, log: RunLog) -> None:
    wanted, groups = settings.method.batch_norm_splits, batch_norm_groups(settings, group.size)
    if groups != wanted:
        log.say(
            f"batch norm takes its statistics over {groups} groups of the batch, not {wanted}: at least one for each"
            " process and part"
        )


@dataclass
class _Run:
    """What the training loop calls back."""

    settings: RunSettings
    splits: dict[str, Split]
    order: StepOrder
    state: TrainState
    model: MoCo
    digest: str
    log: RunLog
    monitor: Monitor
    group: Group
    start_step: int
    traffic_told: bool = False

    def hooks(self) -> Hooks:
        return Hooks(self.save, self.after_epoch, self.skipped)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, after making sure that all processes hold the same."""
        model = self.model
        shared = {name: tensor for name, tensor in model.state_dict().items() if name != "queue" or not model.sharded}
        self.group.check_same("the weights", list(shared.values()))
        content = {
            **state.as_content(), "settings": portable_settings(self.settings), "manifest_sha256": self.digest,
            "processes": self.group.size,
        }  # fmt: skip
        content["model"]["queue"] = model.whole_queue()
        self.group.first(lambda: save_checkpoint(self.settings.out / "checkpoints", state.step, content))
        self.write_status("running")

    def after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Measure what the features are worth so far, where that is due."""
        if self.group.size > 1 and not self.traffic_told:
            self.traffic_told = True
            self.log.say(traffic(self.group, self.settings, self.state.step - self.start_step, self.model))
        every = self.settings.train.knn_every
        if not every or (epoch + 1) % every or not self.settings.data.labels:
            return {}
        backbone = self.model.query_encoder.backbone

        def measure() -> dict[str, float]:
            try:
                return self.monitor(backbone, self.splits, self.settings, stop_asked)  # type: ignore[arg-type]
            except Stopped:
                return {}

        return self.group.first(measure) or {}

    def skipped(self, step: int, total: int, processes: list[int]) -> None:
        """Record a step that did nothing, with what is needed to do it again."""
        if not processes and self.state.scaler.is_enabled():
            return  # fp16 is still finding its scale
        batch, split = self.order.batch(step), self.splits["train"]
        self.log.append("skipped.jsonl", {
            "step": step, "epoch": batch.epoch, "processes": processes, "rows": split.rows[batch.samples].tolist(),
        })  # fmt: skip
        self.log.warn(
            f"step {step} is skipped, the {total}. so far: its {'loss' if processes else 'gradient'} is not finite;"
            f" the rows of {split.csv.name} are in skipped.jsonl"
        )

    def write_status(self, word: str, error: MedmocoError | None = None) -> None:
        """Write status.json."""
        if self.group.is_first:
            _write_status(self.settings.out, word, self.state, self.order, error)


def _claim_folder(out: Path, overwrite: bool) -> None:
    """Make sure that the run folder is empty, or empty it when told to."""
    if out.exists() and any(out.iterdir()):
        if not (out / "config.yaml").is_file():
            raise SettingsError(f"out: {out} is not empty and holds no run; choose another folder")
        if not overwrite:
            raise SettingsError(
                f"out: {out} holds a run; go on with --resume, replace it with --overwrite, or choose another folder"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _refuse_changes(settings: RunSettings, saved: dict[str, Any], digest: str) -> None:
    """Resuming under other settings would be another run under the same name."""
    was, now = saved["settings"], portable_settings(settings)
    changed = [
        f"{key}: was {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and not key.startswith(_FREE_TO_CHANGE)
    ]
    if changed:
        more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
        raise SettingsError("--resume needs the settings the run was started with:\n" + "\n".join(changed[:3] + more))
    if saved["manifest_sha256"] != digest:
        raise CheckpointError("the training manifest has changed since the checkpoint; restore it or start a new run")


def _describe_run(settings: RunSettings, device: torch.device, precision: str, digest: str, processes: int) -> None:
    """Write config.yaml and environment.json."""
    (settings.out / "config.yaml").write_text(to_yaml(as_tree(settings)), encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "manifest_sha256": digest,
        "libraries": {name: import_module(name).__version__ for name in _LIBRARIES},
    }
    write_json(settings.out / "environment.json", environment)


def _write_status(out: Path, word: str, state: TrainState, order: StepOrder, error: MedmocoError | None = None) -> None:
    status = {
        "state": word,
        "step": state.step,
        "steps": order.steps,
        "exit_code": error.exit_code if error else 0,
        "message": str(error) if error else "",
    }
    write_json(out / "status.json", status)
