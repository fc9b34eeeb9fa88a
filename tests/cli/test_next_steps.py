from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from medmoco import config
from medmoco.cli.next_steps import after_evaluation, after_pretraining
from tests.helpers.commands import TINY, Call

DEFAULT = Path("medmoco.yaml")


def settings(out: str, labels: str = "[A]") -> config.RunSettings:
    return config.load(None, [f"out={out}", "data.manifest=m", "data.root=r", f"data.labels={labels}"])


@pytest.mark.parametrize(
    ("file", "overrides", "option"),
    [
        (DEFAULT, None, ""),
        (Path("my.yaml"), None, " --config my.yaml"),
        (DEFAULT, ["train.epochs=1"], " --config runs/a/config.yaml"),
    ],
)
def test_after_pretraining__names_the_settings_only_where_needed(
    file: Path, overrides: list[str] | None, option: str
) -> None:
    expected = f"next: medmoco evaluate{option} --encoder runs/a --out runs/a/evaluation"
    assert after_pretraining(settings("runs/a"), file, overrides) == expected


def test_after_pretraining__without_labels_there_is_nothing_to_score() -> None:
    said = after_pretraining(settings("runs/my run", "{}"), DEFAULT, None)
    assert said == "next: medmoco export --run 'runs/my run' --out 'runs/my run/export'"


def test_after_evaluation__depends_on_where_the_scores_are(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    run = str(tmp_path)
    assert after_evaluation(run, tmp_path / "evaluation") == f"next: medmoco report {run}"
    assert after_evaluation(run, Path("scores")) == f"next: medmoco export --run {run} --out {run}/export"
    assert after_evaluation(f"{run}/best", tmp_path / "evaluation") == f"next: medmoco report {run}"
    assert (
        after_evaluation(f"{run}/best", Path("scores")) == f"next: medmoco export --run {run}/best --out {run}/export"
    )
    assert after_evaluation("random", Path("scores")) == ""


def test_next__each_command_can_be_copied(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    call("phantom", "--out", "data", "--patients", 24, "--image-size", 64)
    Path("medmoco.yaml").write_text(TINY)
    said, commands = call("pretrain", "views.rotation=5"), []
    while "next: medmoco " in said.stdout:
        commands.append(shlex.split(said.stdout.rpartition("next: medmoco ")[2]))
        said = call(*commands[-1])
    assert [words[0] for words in commands] == ["evaluate", "report"]
    assert Path("run/report.html").is_file()
