"""The context that all parts of a run share: its settings, its device and its processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from medmoco.config import RunSettings
from medmoco.data.augment.normalisation import memory_layout
from medmoco.errors import SettingsError
from medmoco.training.agreement import exchange, together
from medmoco.training.device import choose_device, choose_precision
from medmoco.training.distributed import ALONE, Group

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class RunContext:
    """Settings, device and processes of a run."""

    settings: RunSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"  # or "bf16", "fp16"
    reason: str = ""  # for the choice of precision
    group: Group = field(default_factory=lambda: ALONE)  # the processes that train together
    progress: bool = True  # show messages and a progress bar on stderr; log.txt has the messages either way

    def place(self, module: Module) -> Module:
        """Move a module to the device, in the memory layout that the settings name."""
        layout = memory_layout(self.settings.data.dimensions, channels_last=self.settings.train.channels_last)
        return module.to(self.device).to(memory_format=layout)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which has an effect only with fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def prepare_context(settings: RunSettings, group: Group = ALONE, *, progress: bool = True) -> RunContext:
    """Choose device and precision, and set the number of torch's threads.

    Raises:
        SettingsError: see `choose_device` and `choose_precision`; or the processes differ in their precision.
    """
    train = settings.train
    if train.threads:
        torch.set_num_threads(train.threads)
    with together(group):
        device = choose_device(train)
        precision, reason = choose_precision(train, device)
    precisions = sorted(set(exchange(group, precision)))
    if len(precisions) > 1:
        raise SettingsError(
            f"the machines of this run differ in their default precision: {' and '.join(precisions)}.\n"
            f"Set train.precision={precisions[-1]} for all of them, or use machines of one kind."
        )
    return RunContext(settings, device, precision, reason, group, progress)
