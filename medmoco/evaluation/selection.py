"""The best epoch so far by the score on validation, and when it is time to give up waiting for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Best:
    """The best epoch so far; of equals the first.

    Attributes:
        epoch: From 0; -1 before the first.
        score: Higher is better.
        model: Its weights, on the CPU.
        validated: How many epochs have been scored.
    """

    epoch: int = -1
    score: float = -math.inf
    model: dict[str, Tensor] = field(default_factory=dict)
    validated: int = 0

    def take(self, score: float, model: nn.Module) -> None:
        """Take in the next epoch."""
        if score > self.score:
            self.epoch, self.score = self.validated, score
            self.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.validated += 1

    def is_final(self, patience: int) -> bool:
        """Tell whether so many epochs have passed without a better one; never with a patience of 0."""
        return bool(patience) and self.validated - 1 - self.epoch >= patience

    def as_content(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint; `Best(**content)` takes them over."""
        return {"epoch": self.epoch, "score": self.score, "model": self.model, "validated": self.validated}
