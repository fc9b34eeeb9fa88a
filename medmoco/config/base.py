"""What every node of the settings tree is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medmoco.config.yaml_text import shown

Tree = dict[str, Any]


def _refuse_no_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"{shown(value)} is not a number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{shown(value)} is beyond what a computer counts to")
    return value


Int = Annotated[int, BeforeValidator(_refuse_no_number)]
Float = Annotated[float, BeforeValidator(_refuse_no_number), Field(allow_inf_nan=False)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Positive = Annotated[Float, Field(gt=0)]
Seconds = Annotated[Float, Field(gt=0, le=10_000_000)]  # some months; timers of the system overflow later
Count = Annotated[Int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every node: frozen, unknown keys refused, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
