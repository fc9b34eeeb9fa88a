"""What every node of the settings tree is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medmoco.config.yaml_text import shown

Tree = dict[str, Any]


def _refuse_bool_and_text(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"{shown(value)} is not a number")
    return value


Int = Annotated[int, BeforeValidator(_refuse_bool_and_text)]
Float = Annotated[float, BeforeValidator(_refuse_bool_and_text), Field(allow_inf_nan=False)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Positive = Annotated[Float, Field(gt=0)]
Count = Annotated[Int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every node: frozen, unknown keys refused, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
