from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medmoco import config
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError, SettingsError, Stopped
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.monitor import knn_monitor
from medmoco.training.checkpoint import checkpoint_files
from medmoco.training.distributed import Group
from medmoco.training.moco_task import Contrast
from medmoco.training.run_folder import StartMode
from medmoco.tuning import tune as module
from medmoco.tuning.tune import tune
from tests.helpers.supervised import SECRET, write_images
from tests.helpers.together import run_together

RESUME = StartMode(resume=True)

TRIAL_KEYS = ("number", "values", "score", "low", "high", "failed")


def write_settings(folder: Path) -> Path:
    """Write settings of a search over 24 training and 12 validation images; a trial has 3 steps."""
    manifest = write_images(folder / "data")
    path = folder / "settings.yaml"
    path.write_text(f"""
out: {folder / "run"}
data: {{manifest: {manifest}, root: {manifest}, labels: [Sick, Tube], canvas_size: 32, workers: 0}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 16}}
train: {{epochs: 4, global_batch_size: 8, lr: 0.03, precision: fp32, device: cpu, log_every: 1}}
evaluate: {{bootstrap: 100, neighbours: 3}}
tune:
  trials: 3
  epochs: 1
  space:
    train.lr: {{low: 1.0e-3, high: 0.3, log: true}}
    method.temperature: [0.07, 0.2]
""")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_settings(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    tune(config.load(write_settings(folder), []), folder / "search")
    return folder / "search"


def record_of(out: Path) -> Any:
    return json.loads((out / "tune.json").read_text())


def trials_of(out: Path) -> list[dict[str, Any]]:
    """Return the trials without what depends on how fast the machine is."""
    return [{key: trial[key] for key in TRIAL_KEYS} for trial in record_of(out)["trials"]]


def test_tune__each_trial_is_a_run_and_the_winner_a_settings_file(file: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "search", []
    text = tune(config.load(file, ["seed=1"]), out, log=said.append)
    record, trials = record_of(out), trials_of(out)
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert trials[0]["values"] == {"train.lr": 0.03, "method.temperature": 0.2}
    assert record["score"] == "validation kNN AUROC (mean of Sick, Tube) after 1 epochs"
    best = record["winner"]
    assert best["score"] == max(trial["score"] for trial in trials)
    written = config.load(out / "best.yaml")
    wanted = config.load(file, ["seed=1", *(f"{key}={value}" for key, value in best["values"].items())])
    assert config.as_tree(written) == {**config.as_tree(wanted), "tune": config.as_tree(config.TuneSettings())}
    kept = {number for number in range(3) if checkpoint_files(out / f"trial-00{number}" / "checkpoints")}
    assert kept == {0, best["trial"]}
    settings = config.load(out / "trial-000" / "config.yaml")
    backbone = load_encoder(str(out / "trial-000"), settings).module
    splits = load_manifest(settings.data, ("train", "val"))
    scores = knn_monitor(backbone, splits, settings, lambda: False)
    assert trials[0]["score"] == np.mean(list(scores.values()))
    assert trials[0]["low"] < trials[0]["score"] < trials[0]["high"]
    assert len([line for line in said if "best so far" in line]) == 3
    assert "train.lr=0.03 method.temperature=0.2 (as given)" in text
    assert SECRET not in (out / "tune.json").read_text() + text + "".join(said)
    assert str(tmp_path) not in (out / "tune.json").read_text()


@pytest.mark.parametrize("when", ["in a step", "at the end", pytest.param("while scoring", marks=pytest.mark.slow)])
def test_tune__a_stopped_search_ends_as_one_that_was_not(
    file: Path, tmp_path: Path, whole: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "stopped", []

    def interrupting(action: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(0)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return action(*arguments)

        return call

    with monkeypatch.context() as patched:
        if when == "while scoring":
            patched.setattr(module, "validation_scores", interrupting(module.validation_scores, 2))
        else:  # the second of trial 1, or its last, after which pretraining ends without noticing
            at = 5 if when == "in a step" else 6
            patched.setattr(Contrast, "after_step", interrupting(Contrast.after_step, at))
        with pytest.raises(Stopped, match=r"^stopped (after|while)"):
            tune(config.load(file, []), out)
    assert len(trials_of(out)) == 1
    tune(config.load(file, []), out, start=RESUME)
    assert trials_of(out) == trials_of(whole)
    assert record_of(out)["winner"] == record_of(whole)["winner"]
    assert (out / "draws.npy").read_bytes() == (whole / "draws.npy").read_bytes()


def without_space(file: Path) -> Path:
    """Return a file without a space: mappings are merged with what the command line says."""
    tree = yaml.safe_load(file.read_text())
    del tree["tune"]["space"]
    file.write_text(yaml.safe_dump(tree))
    return file


def test_tune__failed_trials_are_recorded_and_the_search_goes_on(file: Path, tmp_path: Path) -> None:
    space = "tune.space={train.lr: [0.03, 1.0e+30], method.queue_size: [16, 1000]}"
    overrides = [space, "tune.trials=10", "train.max_skipped=1", "tune.epochs=2"]
    text = tune(config.load(without_space(file), overrides), tmp_path / "search")
    trials = trials_of(tmp_path / "search")
    assert len(trials) == 4  # there are no more
    reasons = [trial["failed"] or "" for trial in trials]
    assert sum("no finite gradient" in reason for reason in reasons) == 1
    assert sum("queue_size" in reason for reason in reasons) == 2
    assert record_of(tmp_path / "search")["winner"]["trial"] == 0
    assert "No trial scored better than the settings as given (1 trials" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tune.space={}", "names no setting to search"),
        ("tune.space={train.lrr: [1]}", "did you mean 'train.lr'"),
        ("tune.space={trian.lr: [1]}", "did you mean 'train'"),
        ("tune.space={train.lr: [-1.0]}", "'train.lr'"),
        ("tune.space={evaluate.neighbours: [3, 5]}", "does not change the training"),
        ("tune.space={train.log_every: [3, 5]}", "does not change the training"),
        ("tune.space={train.epochs: [1, 2]}", "leave one of them out"),
        ("tune.label=Well", "tune.label Well is not among data.labels: Sick, Tube"),
        ("data.labels=[]", "needs a label"),
        ("method.queue_size=1000", "queue_size"),
    ],
)
def test_tune__refuses_before_anything_is_trained(file: Path, tmp_path: Path, override: str, expected: str) -> None:
    if override.startswith("tune.space"):
        without_space(file)
    with pytest.raises(SettingsError, match=expected) as caught:
        tune(config.load(file, [override]), tmp_path / "search")
    assert len(str(caught.value).splitlines()) <= 5
    assert not list(tmp_path.glob("search/trial-000/checkpoints"))


def test_tune__a_folder_holds_one_search(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    tune(config.load(file, ["tune.trials=1", "tune.label=Sick"]), out)
    with pytest.raises(SettingsError, match="holds a run; continue it with --resume"):
        tune(config.load(file, ["tune.trials=1"]), out)
    with pytest.raises(SettingsError, match=r"evaluate\.neighbours: was 3, now 5"):
        tune(config.load(file, ["tune.label=Sick", "evaluate.neighbours=5"]), out, start=RESUME)
    with pytest.raises(SettingsError, match=r"evaluate\.where: was None, now a condition on ids"):
        tune(config.load(file, ["tune.label=Sick", "evaluate.where=PatientID != P17"]), out, start=RESUME)
    before = trials_of(out)
    tune(config.load(file, ["tune.trials=2", "tune.label=Sick", "data.workers=1"]), out, start=RESUME)
    assert trials_of(out)[:1] == before
    assert len(trials_of(out)) == 2
    tune(config.load(file, ["tune.trials=1"]), out, start=StartMode(overwrite=True))
    assert "mean of Sick, Tube" in record_of(out)["score"]
    assert not (out / "trial-001").exists()
    (out / "draws.npy").write_bytes(b"?")
    with pytest.raises(CheckpointError, match=r"draws\.npy of the search cannot be read"):
        tune(config.load(file, ["tune.trials=1"]), out, start=RESUME)
    (out / "tune.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tune\.json of the search cannot be read"):
        tune(config.load(file, ["tune.trials=1"]), out, start=RESUME)
    (out / "tune.json").unlink()
    (out / "checkpoints").mkdir()
    with pytest.raises(SettingsError, match="holds a run that is not a search"):
        tune(config.load(file, ["tune.trials=1"]), out, start=RESUME)


def _in_a_group(group: Group, file: Path, out: Path) -> str:
    return tune(config.load(file, ["tune.trials=2", "method.batch_norm_splits=2"]), out, group=group)


@pytest.mark.slow
def test_tune__processes_run_each_trial_together(file: Path, tmp_path: Path) -> None:
    first, second = run_together(2, _in_a_group, file, tmp_path / "together")
    assert "trial" in first
    assert second == ""
    tune(config.load(file, ["tune.trials=2", "method.batch_norm_splits=2"]), tmp_path / "alone")
    for own, both in zip(trials_of(tmp_path / "alone"), trials_of(tmp_path / "together"), strict=True):
        assert own["values"] == both["values"]
        assert own["score"] == pytest.approx(both["score"], abs=0.1)
