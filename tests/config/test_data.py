from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("views.crop_scale=[0.9, 0.1]", "crop_scale [0.9, 0.1] must be [low, high]"),
        ("views.crop_scale=[0, 1]", "crop_scale must be above 0"),
        ("data.labels={A: {uncertain: maybe}}", "'data.labels.A.uncertain'"),
        ("data.labels={A: {unsure: one}}", "unknown key 'data.labels.A.unsure'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__labels_as_list_or_mapping_and_replaced_as_a_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "out: a\ndata: {manifest: m, root: r, labels: [A, B]}\n")
    assert config.load(file).data.labels == {"A": config.LabelPolicy(), "B": config.LabelPolicy()}
    changed = config.load(file, ["data.labels={C: {uncertain: one}}"]).data.labels
    assert changed == {"C": config.LabelPolicy(uncertain="one")}
