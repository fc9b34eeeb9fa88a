"""Settings of the search for better settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from medmoco.config.base import Count, Float, Settings


class Range(Settings):
    """Numbers to choose from."""

    low: Float
    """Smallest."""

    high: Float
    """Largest."""

    log: bool = False
    """Equal steps multiply: for what spans powers of ten."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}{', and above 0' if self.log else ''}")
        return self


# Told apart by their form, so that what is wrong with one is not said of the other too.
Possible = Annotated[
    Annotated[tuple[Any, ...], Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda possible: "choices" if isinstance(possible, list | tuple) else "range"),
]


class TuneSettings(Settings):
    """What `medmoco tune` tries."""

    space: dict[str, Possible] = Field(default={})
    """Setting -> a list of choices, or {low, high, log} of numbers; such as {train.lr: {low: 0.003, high: 0.3,
    log: true}, method.queue_size: [1024, 4096]}."""

    trials: Count = 20
    """Pretraining runs in all; the first is of the settings as given. Source: four more are drawn blindly."""

    epochs: Count | None = None
    """Passes of each trial over the training split; null is train.epochs."""

    label: str | None = None
    """Label to judge by; null is the mean over data.labels."""

    @field_validator("space", mode="before")
    @classmethod
    def _lists_or_ranges(cls, space: Any) -> Any:
        for key, possible in space.items() if isinstance(space, dict) else ():
            is_range = isinstance(possible, dict) and {"low", "high"} <= possible.keys() <= {"low", "high", "log"}
            are_choices = isinstance(possible, list | tuple) and len(possible) > 0
            if not (are_choices or isinstance(possible, Range) or is_range):
                raise ValueError(f"give {key} a list of choices, or {{low: ..., high: ..., log: true}}")
        return space
