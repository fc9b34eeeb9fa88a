"""Volumes through the public API: from files to an encoder, its features and its scores."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

import medmoco
from medmoco.data.augment.volume_views import whole_view, windows
from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.evaluation.features.inputs import hash_of_images, load_unlabelled
from medmoco.training import pretrain as module
from medmoco.training.bench import measure
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.moco_task import Contrast
from medmoco.training.synthetic import on_phantoms
from tests.helpers.runs import assert_same
from tests.helpers.volume_files import random_pixels, save_series

SIZES = {"train": 12, "val": 8}


def write_volumes(folder: Path) -> Path:
    """Write volumes of noise with a ball whose brightness is the label, several of each patient."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in (30, 26, 14)], indexing="ij"), -1)
    for split, count in SIZES.items():
        rows = []
        for number in range(count):
            label = number % 2
            values = rng.normal(100, 20, grid.shape[:3])
            centre = rng.uniform((8, 8, 4), (22, 18, 10))
            values[np.linalg.norm((grid - centre) * (1, 1, 2), axis=-1) < 6] += 60 + 120 * label
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            path = f"secret-{split}-{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), folder / path)
            rows.append((path, f"confidential-{split}-{number // 2}", label))
        pd.DataFrame(rows, columns=["Path", "PatientID", "Bright"]).to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


def settings(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": {
            "manifest": str(folder), "root": str(folder), "labels": ["Bright"], "dimensions": 3, "spacing": [1, 1, 2],
            "window": "percentiles", "workers": 0, **changes.pop("data", {}),
        },
        "views": {"recipe": "mr", "size": 16, **changes.pop("views", {})},
        "model": {"backbone": "monai/resnet10_quarter"},
        "method": {"queue_size": 8, "batch_norm_splits": 2, "hidden_dim": 16, "embedding_dim": 8},
        "train": {
            "epochs": 2, "global_batch_size": 4, "warmup_epochs": 0, "knn_every": 2, "device": "cpu", "threads": 1,
            "checkpoint_every": 2, "precision": "fp32",  # bf16 convolutions of a single voxel are wrong on AMX
        },
        "evaluate": {"batch_size": 4, "bootstrap": 100, "strengths": [0.01, 1], **changes.pop("evaluate", {})},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> medmoco.Run:
    return medmoco.pretrain(settings(volumes, tmp_path_factory.mktemp("runs") / "run"))


def model_of(folder: Path) -> dict[str, Any]:
    model: dict[str, Any] = load_checkpoint(folder / "checkpoints", pytest.fail)["model"]
    return model


@pytest.mark.parametrize("changes", [{"workers": 2}, {"pack": "pack"}])
def test_pretrain__gives_the_same_weights_with_workers_and_from_a_pack(
    volumes: Path, run: medmoco.Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "pack" in changes:
        changes = {"pack": str(tmp_path / changes["pack"])}
    other = medmoco.pretrain(settings(volumes, tmp_path / "run", data=changes))
    assert_same(model_of(run.folder), model_of(other.folder))


def pretrain_in_two_parts(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: int) -> medmoco.Run:
    """Stop a run by SIGTERM after a step, as SLURM does, and resume it."""

    class Interrupted(Contrast):
        def losses(self, batch: Any, measure: bool) -> Any:
            if batch.step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(batch, measure)

    with monkeypatch.context() as patched:
        patched.setattr(module, "Contrast", Interrupted)
        with pytest.raises(Stopped, match=f"after step {step} of"):
            medmoco.pretrain(tree)
    return medmoco.pretrain(tree, resume=True)


def test_pretrain__resumes_bitwise(
    volumes: Path, run: medmoco.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pretrain_in_two_parts(settings(volumes, tmp_path / "run"), monkeypatch, 4)
    assert_same(model_of(run.folder), model_of(again.folder))


@pytest.mark.slow
def test_hippocampi__are_trained_resumed_bitwise_and_exported(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared / "data/volumes/hippocampus"

    def tree(name: str) -> dict[str, Any]:
        made = settings(folder, tmp_path / name, data={"labels": [], "spacing": [1, 1, 1]}, views={"size": 32})
        made["train"] |= {"global_batch_size": 8, "knn_every": 0}
        return made

    run = medmoco.pretrain(tree("whole"))
    assert run.metrics["step"].max() == 30  # two epochs of 120 volumes
    again = pretrain_in_two_parts(tree("parts"), monkeypatch, 17)
    assert_same(model_of(run.folder), model_of(again.folder))
    medmoco.export(again, tmp_path / "export", formats=["safetensors", "onnx", "monai-bundle"])
    medmoco.verify(tmp_path / "export")
    first = folder / pd.read_csv(folder / "test.csv")["Path"][0]
    np.testing.assert_allclose(
        medmoco.load_encoder(tmp_path / "export").embed([first]), again.encoder.embed([first]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_pretrain__by_patient_with_reconstruction_and_v3(volumes: Path, tmp_path: Path) -> None:
    tree = settings(volumes, tmp_path / "run")
    tree |= {
        "method": {"name": "moco_v3", "hidden_dim": 16, "embedding_dim": 8},
        "positives": {"image": "patient"},
        "decoder": {"weight": 1.0, "channels": 16},
    }
    records = medmoco.pretrain(tree).metrics
    assert np.isfinite(records[["loss", "reconstruction"]].dropna().to_numpy()).all()
    assert len(records["reconstruction"].dropna())


def test_pretrain__refuses_a_faulty_volume_with_its_row(volumes: Path, tmp_path: Path) -> None:
    folder = write_volumes(tmp_path)
    flat = nibabel.Nifti1Image(np.zeros((9, 9, 1), np.float32), np.eye(4))
    nibabel.save(flat, folder / "secret-train-3.nii.gz")
    with pytest.raises(DataError, match=r"train.csv row 5: .*single slice") as caught:
        medmoco.pretrain(settings(folder, tmp_path / "run"))
    assert "secret" not in str(caught.value)


def test_embed__features_of_windows_are_their_mean_and_resized_is_one_view(volumes: Path, run: medmoco.Run) -> None:
    encoder = run.encoder
    (file,) = sorted(volumes.glob("secret-val-0.nii.gz"))
    prepared = torch.from_numpy(encoder.preprocess(file))  # (W, 1, S, S, S)
    with torch.inference_mode():
        expected = encoder.module(prepared).mean(0).numpy()
    np.testing.assert_allclose(encoder.embed([file])[0], expected, rtol=1e-4, atol=1e-6)
    resized = medmoco.load_encoder(run.folder, {"evaluate": {"volumes": "resized"}})
    view = torch.from_numpy(resized.preprocess(file))  # (1, S, S, S)
    assert view.shape == (1, 16, 16, 16)
    with torch.inference_mode():
        expected = resized.module(view[None])[0].numpy()
    np.testing.assert_allclose(resized.embed([file])[0], expected, rtol=1e-4, atol=1e-6)
    assert "of volumes of 16 x 16 x 16 voxels" in repr(encoder)


def test_embed__files_folders_arrays_and_the_split_agree(volumes: Path, run: medmoco.Run, tmp_path: Path) -> None:
    encoder = run.encoder
    of_split = encoder.embed("val")
    rows = [f"secret-val-{number}.nii.gz" for number in range(SIZES["val"])]
    np.testing.assert_array_equal(encoder.embed(rows, root=volumes), of_split)
    few = tmp_path / "few"
    few.mkdir()
    for row in rows[:2]:
        (few / row).write_bytes((volumes / row).read_bytes())
    np.testing.assert_array_equal(encoder.embed(few), of_split[:2])
    values = np.asarray(nibabel.load(volumes / rows[0]).dataobj)
    np.testing.assert_array_equal(encoder.embed([values]), of_split[:1])
    (few / rows[1]).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read"):
        found = encoder.embed(few, unreadable="nan")
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[0], of_split[0])


def test_series__of_one_folder_have_features_and_hashes_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        pixels = random_pixels(8, 24, 20, seed=number)
        save_series(
            tmp_path / "both", pixels, names=[f"{number}-{k}" for k in range(8)], SeriesInstanceUID=f"1.{number}"
        )
    found, hashes = [], []
    for order in ("01", "10"):
        lines = ["Path,SeriesInstanceUID", *(f"both,1.{number} " for number in order)]
        (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
        tree = settings(tmp_path, tmp_path / "run", data={"labels": [], "window": [0, 2000]})
        found.append(medmoco.embed(tree, "random", tmp_path / f"{order}.npz", split="train").to_numpy()[:, 1:])
        split = load_unlabelled(medmoco.load_config(tree), "train")
        hashes.append(hash_of_images(split, medmoco.load_config(tree).data))
    np.testing.assert_array_equal(found[0], found[1][::-1])
    assert not np.array_equal(found[0], found[1])
    assert None not in hashes
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("way", ["sliding", "resized"])
def test_evaluate__scores_volumes_next_to_the_untrained_network_and_raw_voxels(
    volumes: Path, run: medmoco.Run, tmp_path: Path, way: str
) -> None:
    tree = settings(volumes, tmp_path / "run", evaluate={"volumes": way})
    found = medmoco.evaluate(tree, {"ours": run}, out=tmp_path / "scores")
    frame = found.to_frame()
    assert set(frame["encoder"]) == {"ours", "untrained", "pixels"}
    assert frame["auroc"].between(0, 1).all()
    sides = "in windows of 16 x 16 x 16" if way == "sliding" else "volumes 16 x 16 x 16"
    assert sides in (tmp_path / "scores/table.txt").read_text()


def test_classifiers__of_volumes_are_trained_and_predict(volumes: Path, run: medmoco.Run, tmp_path: Path) -> None:
    short = {"epochs": 1, "warmup_epochs": 0, "global_batch_size": 4, "least_steps": 2}
    tree = settings(volumes, tmp_path / "run", evaluate={"mirror": True, "stages": 3}, finetune=short)
    classifier = medmoco.finetune(tree, run.folder, tmp_path / "tuned")
    table = classifier.predict([volumes / f"secret-val-{number}.nii.gz" for number in range(3)])
    assert table.filter(like="Bright").apply(lambda column: column.between(0, 1)).all(axis=None)
    probe = medmoco.evaluate(tree, {"ours": run}, out=tmp_path / "scores")
    frozen = medmoco.load_classifier(tmp_path / "scores/classifier")
    assert frozen.preprocessing.dimensions == 3
    assert frozen.predict([volumes / "secret-val-0.nii.gz"])["Bright"].between(0, 1).all()
    assert probe.to_frame()["auroc"].notna().all()


@pytest.mark.slow
def test_raw_voxels__are_of_the_whole_volume_in_either_way(volumes: Path, run: medmoco.Run, tmp_path: Path) -> None:
    scores = []
    for way in ("sliding", "resized"):
        tree = settings(volumes, tmp_path / way, evaluate={"volumes": way})
        frame = medmoco.evaluate(tree, {"ours": run}, out=tmp_path / way).to_frame()
        scores.append(frame[frame["encoder"] == "pixels"]["auroc"].to_numpy())
    np.testing.assert_array_equal(*scores)


def test_preview__shows_three_slices_of_a_volume(volumes: Path, tmp_path: Path) -> None:
    picture = cv2.imread(str(medmoco.preview(settings(volumes, tmp_path / "run"), tmp_path / "views.png", images=2)))
    assert picture is not None
    assert picture.shape[0] == 2 * (2 * 16 + 4)


def test_settings__what_has_no_meaning_for_volumes_is_refused(volumes: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"decoder\.empty"):
        medmoco.pretrain(settings(volumes, tmp_path / "run", decoder={"weight": 1.0, "empty": "black"}))


@pytest.mark.parametrize("command", ["detect", "placement", "reconstruct", "bench --synthetic"])
def test_commands__for_images_only_say_so(volumes: Path, run: medmoco.Run, tmp_path: Path, command: str) -> None:
    tree = settings(volumes, tmp_path / "run")
    calls: dict[str, Callable[[], object]] = {
        "detect": lambda: medmoco.detect(tree, run.folder, tmp_path / "out"),
        "placement": lambda: medmoco.placement(tree, run.folder, tmp_path / "out"),
        "reconstruct": lambda: medmoco.reconstruct(tree, run.folder, tmp_path / "r.png", [2]),
        "bench --synthetic": lambda: on_phantoms(medmoco.load_config(tree), print).__enter__(),
    }
    with pytest.raises(SettingsError, match=r"is available for images only, but data\.dimensions is 3") as caught:
        calls[command]()
    assert command.split()[0] in str(caught.value) or command == "detect"


@pytest.mark.parametrize("mirror", [False, True])
def test_saliency__shows_three_slices_of_a_volume(
    volumes: Path, run: medmoco.Run, tmp_path: Path, mirror: bool
) -> None:
    tree = settings(volumes, tmp_path / "run", evaluate={"volumes": "resized", "mirror": mirror, "size": 64})
    medmoco.evaluate(tree, {"ours": run}, out=tmp_path / "scores")
    text = medmoco.saliency(tree, tmp_path / "scores/classifier", tmp_path / "s.png", [2, 3], "Bright")
    assert "Grad-CAM: each map has 2 x 2 x 2 positions" in text
    assert "secret" not in text
    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture is not None
    assert np.ptp(picture.astype(int), axis=2).max() > 30  # there is colour


def test_saliency__of_windows_is_refused(volumes: Path, run: medmoco.Run, tmp_path: Path) -> None:
    tree = settings(volumes, tmp_path / "run")
    medmoco.evaluate(tree, {"ours": run}, out=tmp_path / "scores")
    with pytest.raises(SettingsError, match=r"evaluate\.volumes=resized"):
        medmoco.saliency(tree, tmp_path / "scores/classifier", tmp_path / "s.png", [2], "Bright")


def test_bench__measures_volumes(volumes: Path, tmp_path: Path) -> None:
    facts = measure(medmoco.load_config(settings(volumes, tmp_path / "run")), 0.3, lambda _: None)
    assert facts.views.median > 0


def test_views__cover_what_evaluation_shows(volumes: Path, run: medmoco.Run) -> None:
    canvas = run.encoder.preprocessing.canvas(volumes / "secret-val-1.nii.gz")
    shown = windows(canvas, 16)
    assert len(shown) > 1
    assert whole_view(canvas, 16).shape == shown.shape[1:]


@pytest.mark.slow
def test_page__its_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/volumes.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (settings_of_page,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("ct.yaml").write_text(settings_of_page)
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("medmoco ")
    ]
    assert len(commands) == 9
    for command in commands:
        words = [sys.executable, "-m", "medmoco", *shlex.split(command)[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
