"""A small run folder as pretraining leaves it, with words planted in it that must not leave it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from medmoco import config
from medmoco.data.manifest.manifest import load_manifest
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.exporting.export import export
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import create_moco
from medmoco.training.checkpoint import portable_settings, save_checkpoint

PLANTED = ("planted-folder", "planted-patient", "planted-user", "planted-host", "planted-file")

SCORE = {
    "label": "Opacity", "split": "test", "method": "linear", "encoder": "run", "auroc": 0.875, "auroc_low": 0.801,
    "auroc_high": 0.923, "n": 40, "n_positive": 11, "n_patients": 23, "average_precision": 0.7, "where": None,
    "label_fraction": 1.0, "flag": None, "note": "planted-patient",
}  # fmt: skip

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Return a function that makes a run inside a folder from `key=value` overrides."""

    def make(folder: Path, *overrides: str) -> Path:
        data = folder / "planted-folder" / "data"
        _write_data(data)
        run = folder / "planted-folder" / "run"
        given = [
            f"out={run}", f"data.manifest={data}", f"data.root={data}", "data.labels=[Opacity]", "data.canvas_size=48",
            "views.size=32", "model.backbone=resnet18", "method.queue_size=16", "train.global_batch_size=4",
        ]  # fmt: skip
        settings = config.load(None, [*given, *overrides])
        model = create_moco(create_backbone(settings.model, seed=0, size=settings.views.size), settings.method, seed=0)
        _age(model.query_encoder)
        content = {"model": model.state_dict(), "settings": portable_settings(settings), "note": "planted-patient"}
        save_checkpoint(run / "checkpoints", 12, content)
        (run / "config.yaml").write_text(config.to_yaml(config.as_tree(settings)))
        _write_records(run, load_manifest(settings.data, ("train",))["train"].sha256)
        return run

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> tuple[Path, Path]:
    """Return a run, and its export made by a user and on a host with names."""
    run = make_run(tmp_path_factory.mktemp("run"))
    out = tmp_path_factory.mktemp("exports") / "encoder"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"USER": "planted-user", "LOGNAME": "planted-user", "HOSTNAME": "planted-host"}.items():
            patch.setenv(name, value)
        patch.setattr(socket, "gethostname", lambda: "planted-host")
        files = export(load_encoder(run), out, licence="CC-BY-4.0", warn=pytest.fail)
    assert files == sorted(out.iterdir())
    assert list(out.parent.iterdir()) == [out]
    return run, out


def _write_data(folder: Path) -> None:
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True)
    rows = ["Path,PatientID,Opacity,Sex"]
    for number, label in enumerate(["1", "0", "0", "", "-1", "1"]):
        small = generator.integers(0, 256, (7, 5), np.uint8)
        cv2.imwrite(str(folder / f"planted-file-{number}.png"), cv2.resize(small, (90, 131)))
        rows.append(f"planted-file-{number}.png,planted-patient-{number // 2},{label},M")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")


def _age(module: nn.Module) -> None:
    """Give batch norms numbers that differ from fresh ones.

    Fresh timm networks end every residual branch in a scale of zero: nothing in the branch would matter.
    """
    generator = torch.Generator().manual_seed(5)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.weight, 1, 0.1, generator=generator)
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))


def _write_records(run: Path, digest: str) -> None:
    status = {"state": "stopped", "step": 12, "steps": 50, "exit_code": 75, "message": "planted-host planted-user"}
    environment = {
        "python": "3.11.9", "device": "x86_64", "precision": "fp32", "threads": 2, "manifest_sha256": digest,
        "host": "planted-host", "libraries": {"planted-user": "1"},
    }  # fmt: skip
    speed = [{"step": step, "loss": 2.0, "images_per_second": 8.0, "where": "planted-host"} for step in (6, 12, 18)]
    (run / "status.json").write_text(json.dumps(status))
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, speed)) + '\n{"step": 24, "images_per_second": 1')
    (run / "log.txt").write_text("planted-user on planted-host")
    (run / "evaluation").mkdir()
    by_id = SCORE | {"label": "Nodule", "where": "PatientID == planted-patient-1", "label_fraction": 0.1, "flag": "yes"}
    undefined = SCORE | {
        "label": "Empty",
        "auroc": None,
        "auroc_low": None,
        "auroc_high": None,
        "average_precision": None,
    }
    scores = [SCORE, by_id, undefined, SCORE | {"split": "val", "auroc": 0.987}]
    (run / "evaluation" / "scores.json").write_text(json.dumps(scores))
