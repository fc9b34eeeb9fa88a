from __future__ import annotations

import pytest

from tests.helpers.commands import Call, refused

OF_CXR = ["--config", "configs/cxr.yaml", "--encoder", "random"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["neighbours", *OF_CXR, "--out", "a.png", "--rows", "3;7"], 2, "'3;7' is not a list of row numbers"),
        (["neighbours", *OF_CXR, "--out", "a.png", "--rows", "3", "--bank", "valid"], 2, "'valid' is not a split"),
        (["placement", *OF_CXR, "--out", "a", "--twin", "spin"], 2, "choose from flip, rotate"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)


def test_placement__the_former_name_of_an_option_is_hidden(call: Call) -> None:
    shown = call("placement", "--help").stdout
    assert "--perturbation" in shown
    assert "--twin" not in shown
