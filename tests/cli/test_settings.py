from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from medmoco.datasets.resources import EXAMPLES
from medmoco.starting.health.finding import Finding
from tests.helpers.commands import Call, refused, start

ROOT = Path(__file__).parents[2]


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


def test_doctor__its_exit_code_tells_whether_a_run_would_stop(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("CPU", "ok", "2 cores"), Finding("locks", "warning", "none", "use a local disk")]
    monkeypatch.setattr("medmoco.doctor", lambda: findings)
    assert call("doctor").stdout.splitlines()[-1] == "         -> use a local disk"
    findings.append(Finding("DICOM", "fault", "no decoder", "install one"))
    assert call("doctor", code=1).stdout.splitlines()[-1] == "1 problem would stop a run"


def test_models__lists_a_selection_and_what_matches(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    said = call("models").stdout.splitlines()
    assert said[1].split()[:4] == ["resnet10t", "4.9", "M", "512"]
    assert said[1].endswith("for a CPU, and for a few thousand images")
    assert said[-1].startswith("medmoco models PATTERN lists others")
    monkeypatch.setattr("medmoco.cli.settings._MOST", 1)
    assert "and 6 more; a longer pattern" in call("models", "resnet10*").stdout
    assert "did you mean resnet50" in call("models", "resnt50", code=2).stderr
    listed = call("models", "monai/resnet10_*", "--dimensions", "3").stdout.splitlines()[1]
    assert listed.split()[:4] == ["monai/resnet10_quarter", "0.9", "M", "128"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_config__prints_an_example_that_loads(call: Call, tmp_path: Path, name: str) -> None:
    file = tmp_path / "medmoco.yaml"
    file.write_text(call("config", "--example", name).stdout)
    assert file.read_text() == (ROOT / "configs" / f"{name}.yaml").read_text()
    config.load(file)
