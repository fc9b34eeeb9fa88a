from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medmoco import config
from medmoco.errors import DataError, ManifestError, SettingsError, Stopped, UnexpectedError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import fingerprint
from medmoco.evaluation.metrics.auroc import auroc
from medmoco.evaluation.supervised import finetune as module
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.finetune import finetune
from medmoco.evaluation.supervised.task import Supervision
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.distributed import Group
from medmoco.training.run_folder import StartMode
from tests.helpers.runs import assert_same
from tests.helpers.supervised import SECRET, make_settings, write_images
from tests.helpers.together import run_together, through_a_stop

RESUME = StartMode(resume=True)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def checkpoint(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints", pytest.fail)


def records(run: Path) -> list[dict[str, Any]]:
    timings = ("images_per_second", "waiting")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


def test_finetune__leaves_a_run_folder_and_a_classifier_that_scores_the_same(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out = make_settings(manifest, "finetune.label_fraction=0.6"), manifest.parent / "run"
    result = finetune(settings, "random", out, splits=("val", "test"))
    assert {file.name for file in out.iterdir()} == {
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
        "classifier", "val_scores.csv",
    }  # fmt: skip
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    saved = config.load(out / "config.yaml")
    assert (saved.out, saved.train.epochs, saved.train.lr) == (out, 4, settings.finetune.lr)
    assert {name: scores.shape for name, scores in result.scores.items()} == {"val": (12, 2), "test": (10, 2)}
    classifier = load_classifier(out / "classifier")
    for name, scores in result.scores.items():
        again = classifier.score(result.splits[name], settings)
        np.testing.assert_allclose(again, scores, rtol=1e-5, atol=1e-6)
    assert classifier.facts.val_auroc == {
        label: pytest.approx(auroc(result.targets["val"][:, n], result.scores["val"][:, n]))
        for n, label in enumerate(("Sick", "Tube"))
    }
    assert classifier.facts.encoder == {"kind": "random"}
    assert classifier.facts.calibration["Sick"].kind == "platt"
    assert list(classifier.operating_points["Tube"]) == [0.9, 0.95]
    with (out / "val_scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert [float(row["score"]) for row in rows if row["label"] == "Sick"] == pytest.approx(result.scores["val"][:, 0])
    assert result.rows["Sick"] == 14  # 7 of 12 patients
    said = capsys.readouterr().err
    assert "of 24 training rows have labels" in said
    for file in (file for file in out.rglob("*") if file.is_file()):
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in said


def test_finetune__learns_what_shows(manifest: Path) -> None:
    settings = make_settings(
        manifest, "data.labels=[Sick]", "views.brightness=0", "finetune.epochs=12", "evaluate.stages=2"
    )
    result = finetune(settings, "random", manifest.parent / "run", splits=("test",))
    assert load_classifier(manifest.parent / "run/classifier").facts.stages == 1  # the others are for frozen features
    assert auroc(result.targets["test"][:, 0], result.scores["test"][:, 0]) > 0.9
    losses = [record["loss"] for record in records(manifest.parent / "run") if "loss" in record]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_finetune__patches_are_scored_alike_by_the_classifier_left(manifest: Path, backbone: str) -> None:
    settings = make_settings(
        manifest, f"model.backbone={backbone}", "finetune.head=patches", "finetune.top_patches=2", "views.size=64",
        "finetune.protocol=linear_sgd", "finetune.lr=1", "finetune.head_lr=1", "finetune.epochs=2",
        "finetune.global_batch_size=8", "evaluate.mirror=true",
    )  # fmt: skip
    result, out = finetune(settings, "random", manifest.parent / "run"), manifest.parent / "run"
    classifier = load_classifier(out / "classifier")
    assert (classifier.facts.head, classifier.facts.top_patches, classifier.module.top_patches) == ("patches", 2, 2)
    again = classifier.score(result.splits["val"], make_settings(manifest))
    np.testing.assert_allclose(again, result.scores["val"], rtol=1e-5, atol=1e-6)
    assert classifier.provenance.weights_sha256 == load_encoder("random", settings).provenance.weights_sha256


def test_finetune__patches_that_there_are_not_are_refused_before_anything_is_written(manifest: Path) -> None:
    for overrides, reason in (
        (["finetune.top_patches=5", "views.size=64", "evaluate.size=48"], "has only 4 patches in views of 48"),
        (["model.backbone=test_vit3", "finetune.top_patches=2"], "not be used, such as attn_pool"),
    ):
        settings = make_settings(manifest, "finetune.head=patches", *overrides)
        with pytest.raises(SettingsError, match=reason):
            finetune(settings, "random", manifest.parent / "run")
    assert not (manifest.parent / "run").exists()


def test_finetune__from_scratch_all_layers_learn_alike(manifest: Path) -> None:
    settings, weights = make_settings(manifest, "finetune.epochs=1"), manifest.parent / "encoder.safetensors"
    backbone = load_encoder("random", settings).module
    save_file(backbone.net.state_dict(), weights)
    smallest = {}
    for name, encoder in (("scratch", "random"), ("pretrained", str(weights))):
        finetune(settings, encoder, manifest.parent / name)
        groups = checkpoint(manifest.parent / name)["optimizer"]["param_groups"]
        smallest[name] = min(group["lr_scale"] for group in groups)
    assert smallest["scratch"] == 1
    assert smallest["pretrained"] < settings.finetune.layer_decay


def test_finetune__does_not_read_test_unless_asked(manifest: Path) -> None:
    (manifest / "test.csv").unlink()
    result = finetune(make_settings(manifest, "finetune.epochs=1"), "random", manifest.parent / "run")
    assert list(result.scores) == ["val"]


class Interrupted(Supervision):
    stop_at = 0

    def losses(self, batch: Any, measure: bool) -> Any:
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, measure)


@pytest.mark.parametrize(("stop_at", "workers"), [(1, 0), (2, 1), (8, 0), (11, 0)])
def test_finetune__resumed_is_bitwise_the_uninterrupted_run(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, workers: int
) -> None:
    """Stopped inside an epoch and in its last step, where validation is still to come; at the last of all too."""
    settings, runs = make_settings(manifest), [manifest.parent / name for name in ("straight", "broken")]
    finetune(settings, "random", runs[0])
    with monkeypatch.context() as patched:
        patched.setattr(module, "Supervision", Interrupted)
        patched.setattr(Interrupted, "stop_at", stop_at)
        with pytest.raises(Stopped, match=f"after step {stop_at + 1} "):
            finetune(settings, "random", runs[1])
    assert json.loads((runs[1] / "status.json").read_text())["state"] == "stopped"
    assert not (runs[1] / "classifier").exists()
    finetune(make_settings(manifest, f"data.workers={workers}"), "random", runs[1], start=RESUME)
    one, other = map(checkpoint, runs)
    for part in ("model", "optimizer"):
        assert_same(one[part], other[part])
    for run in runs:  # the end of the last epoch is not saved again after it was scored
        assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert records(runs[0]) == records(runs[1])
    scores = [(run / "val_scores.csv").read_bytes() for run in runs]
    assert scores[0] == scores[1]


def _finetune(group: Group, manifest: Path, out: Path, stop_at: int) -> bool:
    """Run, or stop at a step and then resume; return whether there is a result."""

    def run(resume: bool) -> bool:
        return finetune(make_settings(manifest), "random", out, start=StartMode(resume=resume), group=group) is not None

    return through_a_stop(group, module, "Supervision", Interrupted, stop_at, run) if stop_at else run(False)


@pytest.mark.slow
def test_finetune__two_processes_leave_one_run_and_resume_bitwise(manifest: Path) -> None:
    runs = [manifest.parent / name for name in ("straight", "broken", "alone")]
    assert run_together(2, _finetune, manifest, runs[0], 0) == [True, False]
    assert run_together(2, _finetune, manifest, runs[1], 2) == [True, False]
    one, other = map(checkpoint, runs[:2])
    for part in ("model", "optimizer", "best"):
        assert_same(one[part], other[part])
    assert records(runs[0]) == records(runs[1])
    finetune(make_settings(manifest), "random", runs[2])
    assert {file.name for file in runs[0].iterdir()} == {file.name for file in runs[2].iterdir()}
    together, alone = ([record["loss"] for record in records(run) if "loss" in record] for run in runs[1:])
    assert together[:3] == pytest.approx(alone[:3], rel=1e-3)  # later, rounding has been multiplied


def test_finetune__stops_early_and_keeps_the_best_epoch(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([0.6, 0.9, 0.7, 0.8, 0.95])
    weights: list[torch.Tensor] = []

    def aurocs(self: Any, split: Any, scores: Any) -> dict[str, float | None]:
        weights.append(self.model.head.weight.detach().clone())
        return {"Sick": next(made), "Tube": None}

    settings, out = make_settings(manifest, "finetune.epochs=9", "finetune.patience=2"), manifest.parent / "run"
    monkeypatch.setattr(module._Scorer, "aurocs", aurocs)
    result = finetune(settings, "random", out)
    assert (result.epoch, result.epochs) == (1, 4)
    assert json.loads((out / "status.json").read_text())["step"] == 12
    classifier = load_classifier(out / "classifier").module
    assert torch.equal(classifier.head.weight, weights[1])
    assert not torch.equal(classifier.head.weight, weights[3])
    monkeypatch.undo()
    again = finetune(settings, "random", out, start=RESUME)  # is at its end already
    assert (again.epoch, again.epochs) == (1, 4)
    np.testing.assert_array_equal(again.scores["val"], result.scores["val"])


def test_finetune__starts_from_the_encoder_it_is_given(manifest: Path) -> None:
    other = make_settings(manifest, "seed=9")
    backbone = load_encoder("random", other).module
    file = manifest.parent / "encoder.safetensors"
    save_file(backbone.net.state_dict(), file)
    settings = make_settings(manifest, "finetune.lr=1e-20", "finetune.epochs=1", "finetune.weight_decay=0")
    finetune(settings, str(file), manifest.parent / "run")
    classifier = load_classifier(manifest.parent / "run" / "classifier")
    assert classifier.facts.encoder == {"kind": "file"}
    for (name, own), given in zip(classifier.module.backbone.named_parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(own, given, msg=name)
    with pytest.raises(SettingsError, match=r"encoder: was file, SHA-256 .* now random"):
        finetune(settings, "random", manifest.parent / "run", start=RESUME)


def test_finetune__linear_sgd_leaves_the_encoder_as_it_was(manifest: Path) -> None:
    options = ("finetune.protocol=linear_sgd", "finetune.epochs=2", "finetune.global_batch_size=8", "finetune.lr=1")
    settings = make_settings(manifest, *options, "finetune.head_lr=1")
    finetune(settings, "random", manifest.parent / "run")
    classifier = load_classifier(manifest.parent / "run" / "classifier").module
    encoder = load_encoder("random", settings).module
    assert fingerprint(classifier.backbone) == fingerprint(encoder)
    assert classifier.head.weight.abs().max() > 0.1
    views = config.load(manifest.parent / "run" / "config.yaml").views
    assert (views.crop_scale, views.rotation, views.jitter_probability) == ((0.08, 1.0), 0.0, 0.0)


def test_finetune__linear_sgd_that_changes_the_encoder_is_noticed(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaking(Supervision):
        def after_step(self) -> None:
            next(self.model.backbone.buffers()).add_(1e-6)

    monkeypatch.setattr(module, "Supervision", Leaking)
    settings = make_settings(manifest, "finetune.protocol=linear_sgd", "finetune.epochs=1")
    with pytest.raises(UnexpectedError, match="frozen encoder changed"):
        finetune(settings, "random", manifest.parent / "run")


def test_finetune__classes_report_the_share_of_right_ones(manifest: Path) -> None:
    settings = make_settings(manifest, "data.labels={}", "finetune.classes=Class", "views.brightness=0")
    result = finetune(settings, "random", manifest.parent / "run")
    assert result.labels == ("sick", "well")
    truth = np.nanargmax(result.targets["val"], axis=1)
    assert result.accuracies == {"top1": pytest.approx((result.scores["val"].argmax(1) == truth).mean())}
    np.testing.assert_allclose(result.scores["val"].sum(1), 0, atol=1e-5)  # log-odds of p and of 1 - p
    assert any("val_top1" in record for record in records(manifest.parent / "run"))
    assert load_classifier(manifest.parent / "run" / "classifier").module.exclusive


def test_finetune__lists_unusable_images_of_train_and_refuses_those_of_val(manifest: Path) -> None:
    settings = make_settings(manifest, "data.bad_images=quarantine", "finetune.epochs=1")
    (manifest / f"train-{SECRET}-3.png").write_bytes(b"")
    finetune(settings, "random", manifest.parent / "run")
    assert (manifest.parent / "run" / "quarantine.csv").read_text().splitlines()[1].startswith("5,the file is empty")
    (manifest / f"val-{SECRET}-3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^val\.csv row 5: "):
        finetune(settings, "random", manifest.parent / "again")


def test_finetune__tells_of_patients_in_train_and_val_and_refuses_them_in_test(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("val", "test"):
        text = (manifest / f"{name}.csv").read_text()
        (manifest / f"{name}.csv").write_text(text.replace(f",{SECRET}-{name}-0,", f",{SECRET}-train-0,"))
    settings = make_settings(manifest, "finetune.epochs=1")
    finetune(settings, "random", manifest.parent / "run")
    assert "val shares 1 patients and 0 images with train: its scores are inflated" in capsys.readouterr().err
    with pytest.raises(ManifestError, match="test shares 1 patients"):
        finetune(settings, "random", manifest.parent / "other", splits=("val", "test"))


def test_finetune__refuses_what_it_cannot_choose_an_epoch_by(manifest: Path) -> None:
    text = (manifest / "val.csv").read_text()
    (manifest / "val.csv").write_text(text.replace(",1,", ",0,"))
    with pytest.raises(ManifestError, match=r"^val\.csv: no label has both positives and negatives"):
        finetune(make_settings(manifest, "data.labels=[Sick]"), "random", manifest.parent / "run")
    with pytest.raises(SettingsError, match="accumulation_steps 8 leaves parts of less than 2"):
        finetune(make_settings(manifest, "train.accumulation_steps=8"), "random", manifest.parent / "run")
    assert not (manifest.parent / "run").exists()


def test_settings_of_run__refuses_what_the_processes_cannot_divide(manifest: Path) -> None:
    settings = make_settings(manifest, "finetune.global_batch_size=8")
    with pytest.raises(SettingsError, match="global_batch_size 8 does not divide evenly among 3 processes"):
        module.settings_of_run(settings, manifest, 3)
    with pytest.raises(SettingsError, match="leaves parts of less than 2 images"):
        module.settings_of_run(settings, manifest, 8)


def test_finetune__resume_with_another_loss_shows_the_difference(manifest: Path) -> None:
    out = manifest.parent / "run"
    finetune(make_settings(manifest, "finetune.epochs=1"), "random", out)
    with pytest.raises(SettingsError, match=r"finetune\.loss: was bce, now focal"):
        finetune(
            make_settings(manifest, "finetune.epochs=1", "finetune.loss=focal"),
            "random",
            out,
            start=RESUME,
        )
    with pytest.raises(SettingsError, match=r"--resume.*--overwrite"):
        finetune(make_settings(manifest), "random", out)
    finetune(make_settings(manifest, "finetune.epochs=1", "method.queue_size=7"), "random", out, start=RESUME)
