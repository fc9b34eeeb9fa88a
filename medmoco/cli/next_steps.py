"""The next command of the usual path, for the user to copy: pretrain, evaluate, report, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmoco.config import RunSettings
from medmoco.utils.files import config_option

EVALUATION = "evaluation"
"""Folder in a run in which `medmoco report` looks for the scores."""


def after_pretraining(settings: RunSettings, config_file: Path, overrides: list[str] | None) -> str:
    """Return the command that evaluates a run, or exports it if there are no labels."""
    run = settings.out
    if not settings.data.labels:
        return _export(run, run)
    # The run folder has the settings with the overrides.
    config = ["--config", str(run / "config.yaml")] if overrides else config_option(config_file)
    return _command("evaluate", *config, "--encoder", str(run), "--out", str(run / EVALUATION))


def after_evaluation(primary: str, out: Path) -> str:
    """Return the command that reports the scores of a run, or exports it if they are elsewhere; blank without a run."""
    from medmoco.config import run_of

    source = Path(primary)
    run = run_of(source)
    if run is None:
        return ""
    return _command("report", str(run)) if out == run / EVALUATION else _export(source, run)


def _export(source: Path, run: Path) -> str:
    return _command("export", "--run", str(source), "--out", str(run / "export"))


def _command(*words: str) -> str:
    return f"next: medmoco {shlex.join(words)}"
