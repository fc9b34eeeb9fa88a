"""Small subjects, and formats read back in this process; test_export.py does it in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medmoco.config import ModelSettings
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.evaluation.features.encoder import Encoder
from medmoco.evaluation.features.encoder_files import Provenance
from medmoco.exporting.contract import preprocessing
from medmoco.exporting.export import FORMATS, _outputs, _write
from medmoco.exporting.parity import Floats
from medmoco.exporting.reload import LOADERS
from medmoco.exporting.subject import Subject
from medmoco.models.backbones import create_backbone

LABELS = ("Opacity", "Nodule", "Effusion")


@pytest.fixture(scope="session")
def make_subject() -> Callable[..., Subject]:
    """Return a function that makes a network whose batch norms have seen something, with a head if wanted."""

    def make(
        name: str,
        size: int = 32,
        *,
        head: bool = False,
        mirror: bool = False,
        exclusive: bool = False,
        top_patches: int | None = None,
    ) -> Subject:
        backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=size).eval()
        backbone.requires_grad_(requires_grad=False)
        generator = torch.Generator().manual_seed(1)
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
                layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
        preprocessed = Preprocessing(
            canvas_size=2 * size, bit_depth=8, window="voi", mean=0.5, std=0.25, size=size, mirror=mirror
        )
        encoder = Encoder(backbone, preprocessed, Provenance("random"))
        if not head:
            return Subject(encoder)
        layer = nn.Linear(backbone.feature_dim, len(LABELS)).requires_grad_(requires_grad=False)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / backbone.feature_dim**0.5)
        lines = enumerate(LABELS)
        facts = {
            "labels": list(LABELS), "exclusive": exclusive, "label_policies": {}, "trained": "linear probe",
            "top_patches": top_patches,
            "calibration": {name: {"kind": "platt", "slope": 1.5 + i, "intercept": 0.3 - i} for i, name in lines},
            "operating_points": {name: [{"specificity": 0.9, "threshold": 0.25}] for name in LABELS},
        }  # fmt: skip
        return Subject(encoder, layer, facts)

    return make


@pytest.fixture(scope="session")
def read_back() -> Callable[..., tuple[dict[str, Floats], dict[str, Floats]]]:
    """Return a function that writes one format and gives what its file and what the subject say of some images."""

    def read(name: str, subject: Subject, folder: Path) -> tuple[dict[str, Floats], dict[str, Floats]]:
        assert FORMATS[name].refusal(subject) is None
        described = _write(FORMATS[name], subject, folder)
        contract = json.loads(json.dumps(preprocessing(subject, {name: described}, folder)))
        sides = subject.example.shape[2:]
        images = np.random.default_rng(2).standard_normal((3, 1, *sides)).astype(np.float32)
        run = LOADERS[name](folder / described["path"], contract)
        return run(images, "float32"), _outputs(subject, images)

    return read
