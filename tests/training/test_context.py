from __future__ import annotations

import torch

from medmoco import config
from medmoco.errors import SettingsError
from medmoco.training.context import prepare_context
from medmoco.training.distributed import Group
from tests.helpers.together import run_together


def _prepared(group: Group, precision: str) -> str:
    """What the first process takes, where only its CPU has AMX."""
    torch.cpu.get_capabilities = lambda: {"amx_bf16": group.is_first}  # type: ignore[assignment] # a process of its own
    settings = config.load(
        None, ["out=o", "data.manifest=m", "data.root=r", "train.device=cpu", f"train.precision={precision}"]
    )
    return prepare_context(settings, group).precision


def test_prepare_context__processes_that_differ_in_their_default_are_refused() -> None:
    for found in run_together(2, _prepared, "device"):
        assert isinstance(found, SettingsError)
        assert "differ in their default precision: bf16 and fp32" in str(found)
        assert "train.precision=fp32" in str(found)
    assert run_together(2, _prepared, "fp32") == ["fp32", "fp32"]
