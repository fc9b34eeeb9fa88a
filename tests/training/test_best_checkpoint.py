from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medmoco import config
from medmoco.errors import CheckpointError, SettingsError, Stopped, UnexpectedError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.training import best_checkpoint as module
from medmoco.training.best_checkpoint import History, Score
from medmoco.training.checkpoint import load_best, save_checkpoint
from medmoco.training.distributed import ALONE, Group
from medmoco.training.pretrain import pretrain
from medmoco.training.run_folder import NEW, StartMode
from tests.helpers.together import run_together
from tests.training.test_pretrain import final, make_settings, records, write_images

RESUME = StartMode(resume=True)
STEPS, EPOCHS = 2, 6
SCORES = (0.5, 0.8, 0.6, 0.8, 0.7, 0.75)  # of the epochs


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def settings_of(manifest: Path, out: str, *overrides: str) -> config.RunSettings:
    return make_settings(
        manifest,
        out,
        f"train.epochs={EPOCHS}",
        "train.knn_every=1",
        "train.checkpoint_every=500",
        "train.lr=0.01",
        "train.global_batch_size=12",
        *overrides,
    )


def run(settings: config.RunSettings, start: StartMode = NEW, group: Group = ALONE, stop_at: int = -1) -> None:
    """Train with made-up scores; scoring epoch `stop_at` is interrupted by a signal."""

    def monitor(_: Any, __: Any, settings: config.RunSettings, stop_asked: Callable[[], bool]) -> dict[str, float]:
        found = records(settings) if (settings.out / "metrics.jsonl").exists() else []
        epoch = sum("knn_auroc" in record for record in found)
        if epoch == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_asked()
            raise Stopped("asked to stop")
        return {"knn_auroc/Sick": SCORES[epoch], "knn_auroc/Never": float("nan")}

    pretrain(settings, monitor=monitor, start=start, group=group, estimate=False)


def kept(settings: config.RunSettings) -> list[str]:
    return sorted(file.name for file in (settings.out / "best").iterdir())


def saved(settings: config.RunSettings) -> list[int]:
    return sorted(int(file.stem[5:]) for file in (settings.out / "checkpoints").glob("*.pt"))


def scored(settings: config.RunSettings) -> list[tuple[int, float]]:
    return [(record["step"], record["knn_auroc"]) for record in records(settings) if "knn_auroc" in record]


def log_of(settings: config.RunSettings) -> str:
    return (settings.out / "log.txt").read_text()


def test_history__keeps_the_first_of_equals_and_survives_a_checkpoint() -> None:
    history = History()
    assert History.restored(history.as_content()) == history
    for epoch, value in enumerate(SCORES):
        history.take(Score(value, epoch, STEPS * (epoch + 1)))
    assert history.best == Score(0.8, 1, 4)
    assert (history.last, history.since) == (Score(0.75, 5, 12), 4)
    assert History.restored(json.loads(json.dumps(history.as_content()))) == history


def test_pretrain__keeps_the_best_checkpoint_next_to_the_last_three(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.checkpoint_every=1")
    run(settings)
    assert kept(settings) == ["step-000000004.pt", "step-000000004.pt.sha256"]
    assert saved(settings) == [10, 11, 12]
    assert load_best(settings.out / "best")["step"] == 4
    assert scored(settings) == [(STEPS * (epoch + 1), value) for epoch, value in enumerate(SCORES)]
    assert [record["epoch"] for record in records(settings) if "knn_auroc" in record] == list(range(EPOCHS))
    assert "best kNN score 0.800 (epoch 1, step 4), with its checkpoint in best/; last 0.750 (epoch 5, step 12)" in (
        log_of(settings)
    )
    best, last = load_encoder(settings.out / "best"), load_encoder(settings.out)
    assert (best.provenance.step, best.provenance.selected_by) == (4, "kNN score on val")
    assert (last.provenance.step, last.provenance.selected_by) == (12, None)
    assert best.provenance.settings_sha256 == last.provenance.settings_sha256
    assert best.preprocessing == last.preprocessing


def test_pretrain__saves_what_is_the_best_and_changes_no_weights(manifest: Path) -> None:
    settings, without = settings_of(manifest, "run"), settings_of(manifest, "without", "train.knn_every=0")
    run(settings)
    run(without)
    assert (saved(settings), saved(without)) == ([2, 4, 12], [12])
    one, other = (settings.out / name / "step-000000004.pt" for name in ("checkpoints", "best"))
    assert one.samefile(other)
    for name, value in final(without)["model"].items():
        assert torch.equal(final(settings)["model"][name], value), name
    assert not (without.out / "best").exists()


def test_pretrain__patience_stops_and_says_so(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.patience=3")
    run(settings)
    assert len(scored(settings)) == 5
    said = (
        "stopped early after step 10 of 12 (train.patience): the last 3 kNN scores are no better than 0.800 of epoch 1"
    )
    assert f"{said}; the learning rate is at 7% of its peak" in log_of(settings)
    status = json.loads((settings.out / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("done", 10, 12)
    assert final(settings)["step"] == 10

    run(settings, RESUME)
    assert final(settings)["step"] == 10
    run(settings_of(manifest, "run", "train.patience=null"), RESUME)
    assert final(settings)["step"] == 12
    assert "train.patience: was 3, now None" in log_of(settings)
    assert kept(settings)[0] == "step-000000004.pt"


def test_pretrain__patience_at_the_last_step_is_no_early_stop(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.patience=4")
    run(settings)
    assert "stopped early" not in log_of(settings)
    assert "done: 12 steps" in log_of(settings)


@pytest.mark.parametrize(
    "stop_at",
    [
        pytest.param(0, id="first", marks=pytest.mark.slow),
        pytest.param(1, id="best"),
        pytest.param(5, id="last", marks=pytest.mark.slow),
    ],
)
def test_pretrain__stopped_while_scoring_then_resumed_is_the_uninterrupted_run(manifest: Path, stop_at: int) -> None:
    straight, broken = (settings_of(manifest, out) for out in ("straight", "broken"))
    run(straight)
    with pytest.raises(Stopped, match=f"after step {STEPS * (stop_at + 1)} "):
        run(broken, stop_at=stop_at)
    assert len(scored(broken)) == stop_at
    run(broken, RESUME)
    assert scored(broken) == scored(straight)
    assert kept(broken) == kept(straight)
    assert final(broken)["knn"] == final(straight)["knn"]
    for part in ("best", "checkpoints"):
        one, other = (max((settings.out / part).glob("*.pt")) for settings in (straight, broken))
        assert one.name == other.name
        theirs = [torch.load(file, weights_only=True)["model"] for file in (one, other)]
        assert all(torch.equal(value, theirs[1][name]) for name, value in theirs[0].items())


def test_pretrain__cut_off_between_saving_and_keeping_the_best(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(manifest, "run")
    real = module.keep_as_best

    def cut_off(folder: Path, step: int, best: Path) -> None:
        if step == 4:
            raise OSError("cut off")
        real(folder, step, best)

    with monkeypatch.context() as patched:
        patched.setattr(module, "keep_as_best", cut_off)
        with pytest.raises(UnexpectedError):
            run(settings)
    assert kept(settings)[0] == "step-000000002.pt"
    run(settings, RESUME)
    assert kept(settings) == ["step-000000004.pt", "step-000000004.pt.sha256"]
    assert len(scored(settings)) == EPOCHS


def test_pretrain__a_lost_best_checkpoint_is_reported(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.patience=3")
    run(settings)
    for file in (settings.out / "best").iterdir():
        file.unlink()
    run(settings, RESUME)
    assert kept(settings)[0] == "step-000000004.pt"  # linked again
    for folder in ("best", "checkpoints"):
        (settings.out / folder / "step-000000004.pt").unlink()
    run(settings, RESUME)
    assert "the best checkpoint, of step 4, is gone; the next score counts as the best" in log_of(settings)
    assert final(settings)["knn"]["best"] == {"value": 0.75, "epoch": 5, "step": 12}


def test_pretrain__a_file_system_without_hard_links_gets_a_copy(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    settings = settings_of(manifest, "run")
    run(settings)
    one, other = (settings.out / name / "step-000000004.pt" for name in ("checkpoints", "best"))
    assert one.read_bytes() == other.read_bytes()
    assert not one.samefile(other)
    assert load_best(settings.out / "best")["step"] == 4


def test_pretrain__resumes_a_run_of_an_earlier_version(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.knn_every=0", "train.epochs=2")
    run(settings)
    content = final(settings)
    del content["knn"]
    del content["settings"]["train.patience"]
    save_checkpoint(settings.out / "checkpoints", 4, content)
    later = settings_of(manifest, "run", "train.epochs=3")
    run(later, RESUME)
    assert scored(later) == [(6, 0.5)]
    assert kept(later)[0] == "step-000000006.pt"


def _in_processes(group: Group, manifest: Path, out: str) -> tuple[int, list[str]]:
    """Stop two processes while the first one scores, resume them, and stop early."""
    settings = settings_of(manifest, out, "train.patience=2", "train.epochs=5")
    with pytest.raises(Stopped):
        run(settings, group=group, stop_at=1)
    run(settings, RESUME, group)
    return final(settings)["step"], kept(settings)


def test_pretrain__two_processes_stop_together(manifest: Path) -> None:
    names = ["step-000000004.pt", "step-000000004.pt.sha256"]
    assert run_together(2, _in_processes, manifest, "run") == [(8, names)] * 2
    settings = settings_of(manifest, "run")
    assert scored(settings) == [(STEPS * (epoch + 1), value) for epoch, value in enumerate(SCORES[:4])]
    assert log_of(settings).count("stopped early after step 8 of 10") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.labels=[]", "data.labels names none"),
        ("data.labels=[Same]", "no label has positive and negative images in both train and val"),
    ],
)
def test_patience__without_scores_is_refused(manifest: Path, override: str, message: str) -> None:
    for name in ("train", "val"):
        head, *lines = (manifest / f"{name}.csv").read_text().splitlines()
        (manifest / f"{name}.csv").write_text("\n".join([f"{head},Same", *(f"{line},1" for line in lines)]))
    settings = settings_of(manifest, "run", "train.patience=2", override)
    with pytest.raises(SettingsError, match=f"train.patience 2 needs kNN scores of labels, but {message}"):
        run(settings)
    assert not settings.out.exists()


def test_patience__without_knn_every_is_refused(manifest: Path) -> None:
    with pytest.raises(SettingsError, match="patience 2 counts kNN scores, but knn_every is 0"):
        settings_of(manifest, "run", "train.patience=2", "train.knn_every=0")


def test_load_encoder__best_of_a_run_without_scores_names_the_remedy(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.knn_every=0", "train.epochs=1")
    run(settings)
    with pytest.raises(
        CheckpointError, match=r"has no kNN score, .*train\.knn_every;\nuse the newest .*: give .*run as"
    ):
        load_encoder(settings.out / "best")


def test_load_encoder__damaged_best_is_refused(manifest: Path) -> None:
    settings = settings_of(manifest, "run", "train.epochs=1")
    run(settings)
    file = settings.out / "best" / "step-000000002.pt"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(
        CheckpointError, match=r"step-000000002\.pt, is damaged \(its SHA-256 differs\);\nuse the newest"
    ):
        load_encoder(settings.out / "best")
