from __future__ import annotations

import pytest

from tests.cli.commands import Call, refused


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["pretrain", "--config", "configs/cxr.yaml", "data.manifest=absent"], 3, "absent does not exist"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)
