from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.written import MINIMAL, refusal


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.optimizer=lars", "'train.optimizer'"),
        ("method.key_momentum=1", "'method.key_momentum'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)
