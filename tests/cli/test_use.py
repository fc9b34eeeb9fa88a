from __future__ import annotations

import pytest

from tests.helpers.commands import Call, refused


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["export", "--run", "absent", "--out", "x"], 4, "not a run folder"),
        (["predict", "--config", "configs/cxr.yaml", "--classifier", "x", "--out", "y"], 4, "not a classifier folder"),
        (["import", "w.pth", "--out", "x"], 4, "weights file w.pth does not exist"),
        (["import", "w.pth", "--out", "x", "--which", "teacher"], 2, "give query, or key for its moving average"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)
