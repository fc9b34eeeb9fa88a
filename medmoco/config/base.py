"""The base class and the number types of all settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medmoco.config.yaml_text import shown

Tree = dict[str, Any]


def _require_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"{shown(value)} is not a number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{shown(value)} is too large for a 64-bit integer")
    return value


Int = Annotated[int, BeforeValidator(_require_number)]
Float = Annotated[float, BeforeValidator(_require_number), Field(allow_inf_nan=False)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Positive = Annotated[Float, Field(gt=0)]
Seconds = Annotated[Float, Field(gt=0, le=10_000_000)]  # about four months; system timers overflow beyond
Count = Annotated[Int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, refuses unknown keys, and uses field docstrings as help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
