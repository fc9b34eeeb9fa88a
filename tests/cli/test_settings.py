from __future__ import annotations

import pytest

from tests.helpers.commands import Call, refused, start


def test_config__prints_the_tree() -> None:
    out = start("config", "--config", "configs/cxr.yaml", "train.lr=0.5").stdout
    assert "lr: 0.5" in out
    assert "# command line" in out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["config", "--config", "absent.yaml"], 2, "settings file absent.yaml does not exist"),
        (["config", "--config", "configs/cxr.yaml", "trian.lr=1"], 2, "did you mean 'train'?"),
        (["config", "--config", "configs/cxr.yaml", "model.weights=w.pth"], 2, "known: backbone, init"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)
