from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from medmoco import config
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import DataError, ImageError, ManifestError, SettingsError, Stopped
from medmoco.evaluation.features.monitor import knn_monitor
from medmoco.models.backbones import create_backbone
from medmoco.training import pretrain as module
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.distributed import Group
from medmoco.training.moco_task import Contrast
from medmoco.training.pretrain import pretrain
from medmoco.training.run_folder import StartMode
from tests.helpers.runs import assert_same
from tests.helpers.together import run_together, through_a_stop

RESUME = StartMode(resume=True)

SECRET = "DOE-JANE-4711"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> config.RunSettings:
    """Settings of a run that nothing happened to, for tests that read it and change nothing."""
    settings = make_settings(write_images(tmp_path_factory.mktemp("straight") / "data"))
    run(settings)
    return settings


def write_images(folder: Path) -> Path:
    """Write 24 training and 8 validation images, named and numbered after a patient whose name must not travel."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 24), ("val", 8)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "PatientID", "Sick"])
            for number in range(count):
                path = f"{name}-{SECRET}-{number}.png"
                small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
                small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / path)
                writer.writerow([path, f"{SECRET}-{name}-{number // 2}", number % 2])
    return folder


def make_settings(manifest: Path, out: str = "run", *overrides: str) -> config.RunSettings:
    base = [
        f"out={manifest.parent / out}", f"data.manifest={manifest}", f"data.root={manifest}", "data.labels=[Sick]",
        "data.canvas_size=40", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "method.queue_size=20",
        "method.batch_norm_splits=2", "train.epochs=3", "train.global_batch_size=8", "train.log_every=2",
        "train.knn_every=2", "train.precision=fp32", "train.device=cpu", "train.lr=0.1",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


def run(settings: config.RunSettings, **options: Any) -> None:
    pretrain(settings, monitor=knn_monitor, **options)


def final(settings: config.RunSettings) -> dict[str, Any]:
    return load_checkpoint(settings.out / "checkpoints", pytest.fail)


def records(settings: config.RunSettings) -> list[dict[str, Any]]:
    timings = ("images_per_second", "waiting")
    lines = (settings.out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]


def test_pretrain__leaves_a_complete_run_folder(straight: config.RunSettings) -> None:
    names = {file.name for file in straight.out.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
        "best",
    }  # fmt: skip
    assert json.loads((straight.out / "status.json").read_text())["state"] == "done"
    assert config.load(straight.out / "config.yaml") == straight
    found = records(straight)
    assert [record["step"] for record in found if "loss" in record] == [2, 4, 6, 8, 9]
    assert [record["step"] for record in found if "knn_auroc/Sick" in record] == [6]
    assert found[0]["chance"] == pytest.approx(math.log(21))
    content = final(straight)
    assert content["step"] == 9
    assert int(content["model"]["pointer"]) == 9 * 8 % 20


def test_pretrain__moves_every_weight_of_the_query_encoder_and_lets_the_key_encoder_follow(manifest: Path) -> None:
    settings = make_settings(manifest, "run", "train.epochs=1", "train.checkpoint_every=1")
    run(settings)
    first, last = (
        torch.load(settings.out / "checkpoints" / f"step-{step:09d}.pt", weights_only=True)["model"] for step in (1, 3)
    )
    for name in first:
        if name.startswith("query_encoder"):
            assert not torch.equal(first[name], last[name]), name
    distance = {
        who: torch.cat([(last[n] - first[n]).flatten() for n in first if n.startswith(who) and "weight" in n]).norm()
        for who in ("query_encoder", "key_encoder")
    }
    assert distance["key_encoder"] < 0.1 * distance["query_encoder"]


def stop_during(monkeypatch: pytest.MonkeyPatch, stop_at: int, go: Callable[[], None]) -> None:
    class Interrupted(Contrast):
        def losses(self, batch: Any, measure: bool) -> Any:
            if batch.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(batch, measure)

    with monkeypatch.context() as patched:
        patched.setattr(module, "Contrast", Interrupted)
        with pytest.raises(Stopped, match=f"after step {stop_at + 1} of "):
            go()


@pytest.mark.parametrize(("stop_at", "workers"), [(1, 1), (2, 0), (4, 2)])
def test_pretrain__resumed_is_bitwise_the_uninterrupted_run(
    manifest: Path, straight: config.RunSettings, monkeypatch: pytest.MonkeyPatch, stop_at: int, workers: int
) -> None:
    """Stopped inside an epoch, at its end and at its start; resumed with another number of workers."""
    broken = make_settings(manifest, "broken")
    stop_during(monkeypatch, stop_at, lambda: run(broken))
    assert json.loads((broken.out / "status.json").read_text())["state"] == "stopped"
    run(make_settings(manifest, "broken", f"data.workers={workers}"), start=RESUME)
    for part in ("model", "optimizer"):
        assert_same(final(straight)[part], final(broken)[part])
    weights = [records(settings)[-1]["loss"] for settings in (straight, broken)]
    assert stop_at + 1 > 8 or weights[0] == weights[1]


V3 = (
    "method.name=moco_v3", "method.queue_size=0", "method.hidden_dim=32", "method.batch_norm_splits=1",
    "train.optimizer=adamw", "train.lr=0.001",
)  # fmt: skip
FAMILY: dict[str, tuple[str, ...]] = {
    "v3-conv-stem": (*V3, "model.backbone=moco-v3/vit_conv_tiny", "method.negatives=other_patients"),
    "symmetric-patient": (
        "method.symmetric=true", "method.negatives=other_patients", "method.queue_size=50", "positives.image=patient",
    ),
    "decoder": (
        "decoder={weight: 1, channels: 32, empty: threshold, threshold: 0.2}", "train.optimizer=adamw",
        "train.lr=0.001",
    ),
    "v3-lars": (*V3, "method.projector=mlp_2", "train.optimizer=lars"),
    "v3-fixed-patches": (*V3, "model.backbone=vit_tiny_patch16_224", "model.fixed_patches=true"),
    "autoencoder": ("decoder={weight: 1, contrast: 0, channels: 32}",),
    "other-images": ("method.negatives=other_images", "method.queue_size=50"),
}  # fmt: skip
QUICK = ("symmetric-patient", "decoder")


def of_the_family(manifest: Path, out: str, name: str) -> config.RunSettings:
    return make_settings(manifest, out, *FAMILY[name], "train.epochs=2", "train.knn_every=0")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILY]
)
def test_pretrain__of_the_family_resumed_is_bitwise_the_uninterrupted_run(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    straight, broken = (of_the_family(manifest, out, name) for out in ("straight", "broken"))
    run(straight)
    stop_during(monkeypatch, 3, lambda: run(broken))
    run(broken, start=RESUME)
    for part in ("model", "optimizer"):
        assert_same(final(straight)[part], final(broken)[part])
    model, start = final(straight)["model"], "query_encoder.backbone.net.patch_embed.proj.weight"
    if name == "v3-fixed-patches":
        untrained = create_backbone(straight.model, seed=straight.seed, size=32).net.state_dict()
        assert torch.equal(model[start], untrained["patch_embed.proj.weight"])


class Interrupted(Contrast):
    stop_at = 0

    def losses(self, batch: Any, measure: bool) -> Any:
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, measure)


def _pretrain(group: Group, manifest: Path, out: str, name: str, stop_at: int) -> None:
    """Run, or stop at a step and then resume."""

    def go(resume: bool) -> None:
        run(of_the_family(manifest, out, name), start=StartMode(resume=resume), group=group)

    if stop_at:
        through_a_stop(group, module, "Contrast", Interrupted, stop_at, go)
    else:
        go(resume=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_pretrain__of_the_family_in_two_processes_resumes_bitwise(manifest: Path, name: str) -> None:
    for out, stop_at in (("straight", 0), ("broken", 3)):
        assert run_together(2, _pretrain, manifest, out, name, stop_at) == [None, None]
    one, other = (final(of_the_family(manifest, out, name)) for out in ("straight", "broken"))
    for part in ("model", "optimizer"):
        assert_same(one[part], other[part])
    run(of_the_family(manifest, "alone", name))
    together, alone = (
        [record["loss"] for record in records(of_the_family(manifest, out, name))] for out in ("straight", "alone")
    )
    assert together[0] == pytest.approx(alone[0], rel=1e-3)  # later, rounding has been multiplied


def test_pretrain__a_decoder_learns_what_views_look_like(manifest: Path) -> None:
    settings = make_settings(
        manifest, "run", "decoder={weight: 1, contrast: 0, channels: 32}", "train.epochs=12", "train.knn_every=0",
        "train.optimizer=adamw", "train.lr=0.003",
    )  # fmt: skip
    run(settings)
    found = records(settings)
    assert found[-1]["reconstruction"] < 0.8 * found[0]["reconstruction"]
    assert "chance" not in found[-1]
    content = final(settings)["model"]
    assert any(name.startswith("decoder.") for name in content)
    assert not content["pointer"]


def test_pretrain__says_how_many_rows_have_no_partner(manifest: Path) -> None:
    settings = make_settings(manifest, "run", "positives.image=patient", "train.epochs=1", "train.knn_every=0")
    run(settings)
    assert "train: 0 of 24 rows have no other suitable image of their patient" in (settings.out / "log.txt").read_text()


def test_pretrain__starts_from_the_query_encoder_of_another_project(manifest: Path) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("resnet10t", num_classes=128).state_dict()
    file = manifest.parent / "moco.pth.tar"
    state = {f"module.encoder_{role}.{key}": value for role in "qk" for key, value in theirs.items()}
    torch.save({"epoch": 200, "state_dict": state | {"module.queue": torch.zeros(128, 32)}}, file)
    still = ("model.backbone=resnet10t", "train.lr=1e-12", "train.epochs=1", "train.knn_every=0")
    settings = make_settings(manifest, "run", f"model.init={file}", *still)
    run(settings)
    model, new = final(settings)["model"], make_settings(manifest, "new", *still)
    run(new)
    expected = theirs["conv1.0.weight"].sum(1, keepdim=True)
    for encoder in ("query_encoder", "key_encoder"):
        torch.testing.assert_close(model[f"{encoder}.backbone.net.conv1.0.weight"], expected)
        own = f"{encoder}.projector.0.weight"
        torch.testing.assert_close(model[own], final(new)["model"][own])
    log = (settings.out / "log.txt").read_text()
    assert "starting from weights file moco.pth.tar: query encoder of a moco file with names of timm" in log
    assert "(86 other encoder, 2 projector, 1 queue, 1 no tensor)" in log
    assert (
        "the source of these weights normalised images with other values than views.mean=0.5 views.std=0.25; to use its"
        " own, set views.mean=0.449 views.std=0.226\n"
    ) in log
    assert str(manifest.parent) not in log


def test_pretrain__seed_decides_and_workers_do_not(manifest: Path) -> None:
    runs = {
        "a": make_settings(manifest, "a", "train.epochs=1"),
        "b": make_settings(manifest, "b", "train.epochs=1", "data.workers=2"),
        "c": make_settings(manifest, "c", "train.epochs=1", "seed=1"),
    }
    for settings in runs.values():
        run(settings)
    assert_same(final(runs["a"])["model"], final(runs["b"])["model"])
    assert not torch.equal(final(runs["a"])["model"]["queue"], final(runs["c"])["model"]["queue"])


def test_pretrain__the_estimate_of_its_duration_does_not_change_the_run(
    manifest: Path, straight: config.RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(
        r"expected duration: about \d+ seconds? for the other 5 steps", (straight.out / "log.txt").read_text()
    )
    monkeypatch.setattr(module, "warning_before_start", lambda *_: "")
    monkeypatch.setattr(module.Pace, "after_step", lambda _: None)
    settings = make_settings(manifest)
    run(settings)
    assert "expected duration" not in (settings.out / "log.txt").read_text()
    for part in ("model", "optimizer"):
        assert_same(final(straight)[part], final(settings)[part])


def test_pretrain__from_a_pack_gives_the_same_weights_to_the_bit(manifest: Path, straight: config.RunSettings) -> None:
    make_pack(make_settings(manifest).data, manifest.parent / "pack", lambda _: None)
    packed = make_settings(manifest, "packed", f"data.pack={manifest.parent / 'pack'}", "data.workers=2")
    for image in manifest.glob("*.png"):
        image.unlink()
    run(packed)
    for part in ("model", "optimizer"):
        assert_same(final(straight)[part], final(packed)[part])
    assert records(straight) == records(packed)
    for file in (packed.out / "checkpoints").glob("*.pt"):
        assert b"pack" not in file.read_bytes().replace(b"pack_failures", b"")


def test_pretrain__goes_on_from_a_pack_after_a_start_from_files(
    manifest: Path, straight: config.RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Interrupted(Contrast):
        def losses(self, batch: Any, measure: bool) -> Any:
            if batch.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(batch, measure)

    with monkeypatch.context() as patched:
        patched.setattr(module, "Contrast", Interrupted)
        with pytest.raises(Stopped):
            run(make_settings(manifest, "broken"))
    elsewhere = [f"data.pack={manifest.parent / 'pack'}", "data.max_bytes=99999", "data.decode_seconds=9"]
    broken = make_settings(manifest, "broken", *elsewhere, "data.allow_symlinks=true")
    make_pack(broken.data, manifest.parent / "pack", lambda _: None)
    run(broken, start=RESUME)
    assert_same(final(straight)["model"], final(broken)["model"])


def test_pretrain__nothing_it_writes_names_a_patient_or_path(straight: config.RunSettings) -> None:
    manifest = straight.data.manifest
    for file in straight.out.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SECRET.encode() not in content, file.name
            # config.yaml is the user's own settings and has to say where the data is.
            assert file.name == "config.yaml" or str(manifest).encode() not in content, file.name


def test_pretrain__bad_image_is_named_by_row_only(manifest: Path) -> None:
    bad = sorted(manifest.glob("train-*.png"), key=lambda file: int(file.stem.split("-")[-1]))[4]
    bad.write_bytes(bad.read_bytes()[:60])
    for workers in (0, 2):
        settings = make_settings(manifest, f"run{workers}", f"data.workers={workers}")
        with pytest.raises(DataError) as caught:
            run(settings)
        assert str(caught.value).startswith("train.csv row 6: ")
        assert SECRET not in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 5
        assert json.loads((settings.out / "status.json").read_text())["exit_code"] == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.queue_size=25", "method.queue_size 25 exceeds the 24 training images"),
        ("train.global_batch_size=32", "train.global_batch_size 32 exceeds the 24 training images"),
    ],
)
def test_pretrain__impossible_sizes_are_refused_before_anything_is_written(
    manifest: Path, override: str, expected: str
) -> None:
    settings = make_settings(manifest, "run", override)
    with pytest.raises(SettingsError, match=expected):
        run(settings)
    assert not settings.out.exists()


def test_pretrain__all_that_would_stop_a_run_is_said_at_once(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, straight: config.RunSettings
) -> None:
    needed = "medmoco.data.loading.workers.shared_bytes"
    monkeypatch.setattr(needed, lambda _, __, ___, workers, ____: (workers > 1) * 10**15)
    (manifest / "val.csv").unlink()
    for image in list(manifest.glob("train-*.png"))[:3]:
        image.unlink()
    large = ("train.global_batch_size=256", "method.queue_size=65536")
    settings = make_settings(manifest, "run", *large, "data.workers=4", f"out={straight.out}")
    with pytest.raises(ManifestError) as caught:
        run(settings)
    assert [line.partition(" do")[0].rpartition("/")[2] for line in str(caught.value).splitlines()] == [
        "data has no val.csv; it contains: train.csv",
        "train.csv: 3 of 24 train files",
        "train.global_batch_size 256 and method.queue_size 65536 exceed the 24 training images",
        "and 2 more",
        "Set train.global_batch_size=4 method.queue_size=16 data.workers=1",
    ]
    labels = make_settings(manifest, "new", "data.labels=[Sickk]", "train.global_batch_size=26")
    with pytest.raises(ManifestError, match=r"no val\.csv(?s:.*)no column 'Sickk'(?s:.*)files do not(?s:.*)\nSet"):
        run(labels)
    assert not labels.out.exists()


def test_pretrain__without_val_both_ways_out_are_named(manifest: Path) -> None:
    (manifest / "val.csv").unlink()
    with pytest.raises(ManifestError, match=r"no val\.csv(?s:.*)labels are scored on val; .* set data\.labels={}$"):
        run(make_settings(manifest))


def test_pretrain__a_folder_in_use_is_refused(manifest: Path) -> None:
    settings = make_settings(manifest, "run", "train.epochs=1")
    run(settings)
    with pytest.raises(SettingsError, match=r"--resume.*--overwrite"):
        run(settings)
    run(settings, start=StartMode(overwrite=True))
    foreign = make_settings(manifest, "foreign")
    foreign.out.mkdir()
    (foreign.out / "thesis.tex").write_text("do not delete")
    for start in (StartMode(), StartMode(overwrite=True)):
        with pytest.raises(SettingsError, match="does not hold a run"):
            run(foreign, start=start)
    assert (foreign.out / "thesis.tex").exists()


def test_pretrain__resume_with_other_settings_shows_the_difference(manifest: Path) -> None:
    run(make_settings(manifest, "run", "train.epochs=1"))
    with pytest.raises(SettingsError, match=r"train\.lr: was 0\.1, now 0\.2"):
        run(make_settings(manifest, "run", "train.epochs=1", "train.lr=0.2"), start=RESUME)


def test_pretrain__resume_with_another_manifest_is_refused(manifest: Path) -> None:
    settings = make_settings(manifest, "run", "train.epochs=1")
    run(settings)
    with (manifest / "train.csv").open("a") as file:
        file.write(f"val-{SECRET}-0.png,new,1\n")
    with pytest.raises(SettingsError, match="training manifest: was 24 rows, now 25; its SHA-256 differs"):
        run(settings, start=RESUME)


def test_pretrain__without_labels_needs_no_validation_split(manifest: Path) -> None:
    (manifest / "val.csv").unlink()
    run(make_settings(manifest, "run", "train.epochs=1", "data.labels={}"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler meets its own
def test_pretrain__compiled_learns_the_same_and_saves_plain_names(manifest: Path) -> None:
    eager = make_settings(manifest, "eager", "train.epochs=1", "train.lr=0.001")
    compiled = make_settings(manifest, "compiled", "train.epochs=1", "train.lr=0.001", "train.compile=true")
    for settings in (eager, compiled):
        run(settings)
    one, other = (final(settings)["model"] for settings in (eager, compiled))
    assert one.keys() == other.keys()
    torch.testing.assert_close(other["queue"], one["queue"], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pretrain__on_a_gpu_learns_and_resumes(manifest: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = ("train.device=cuda", f"train.precision={precision}", "train.lr=0.05", "train.epochs=12")
    settings = make_settings(manifest, precision, "data.workers=2", *options)
    run(settings)
    losses = [record["loss"] for record in records(settings) if "loss" in record]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < max(losses)
    content = final(settings)
    assert content["step"] == 36
    assert (content["scaler"] != {}) == (precision == "fp16")
    run(settings, start=RESUME)  # nothing is left to do, and the state fits
    assert_same(final(settings)["model"], content["model"])


def test_pretrain__scores_without_images_in_quarantine(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The score reads the training split too; an image of the validation split costs the score, not the run."""
    (manifest / f"train-{SECRET}-3.png").write_bytes(b"")
    settings = make_settings(manifest, "run", "data.bad_images=quarantine")
    run(settings)
    assert sum("knn_auroc/Sick" in record for record in records(settings)) == 1
    assert (settings.out / "quarantine.csv").read_text().splitlines()[1].startswith("5,the file is empty")

    (manifest / f"val-{SECRET}-3.png").write_bytes(b"")
    run(make_settings(manifest, "again", "data.bad_images=quarantine"))
    said = capsys.readouterr().err
    assert "warning: no kNN score of epoch 1: val.csv row 5: the file is empty" in said
    assert SECRET not in said
    with pytest.raises(ImageError, match=r"train\.csv row 5"):
        run(make_settings(manifest, "refused"))
