from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from medmoco.config import ModelSettings
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.evaluation.features.encoder import Encoder
from medmoco.evaluation.features.encoder_files import Provenance
from medmoco.exporting.formats import monai_bundle
from medmoco.exporting.subject import Subject, subject_of
from medmoco.models.backbones import create_backbone
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.shipped import shipped
from tests.helpers.volume_files import random_pixels, save_series
from tests.helpers.volume_subjects import head_like, volume_encoder, volume_subject

LABELS = ("Mass, large", 'the "$other"', "@50%")

# What the published schema asks of metadata.json, in our words: MONAI's own file is not copied here, and its
# verify_metadata would download it. Source: MONAI Bundle Specification, "metadata.json File".
_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        **{key: {"type": "string"} for key in ("type", "format", "modality", "dtype")},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
_TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": _TENSOR}
_TEXTS = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
    "copyright",
)  # fmt: skip
_MORE_TEXTS = ("name", "data_source", "data_type", "image_classes", "pred_classes", "intended_use")
SPECIFIED = {
    "type": "object",
    "required": [*_TEXTS, "required_packages_version", "network_data_format"],
    "properties": {
        **{key: {"type": "string"} for key in (*_TEXTS, *_MORE_TEXTS)},
        **{key: {"type": "object"} for key in ("required_packages_version", "changelog")},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _TENSORS, "outputs": _TENSORS, "post_processed_outputs": _TENSORS},
        },
    },
}


def make_subject(backbone: str, labels: Sequence[str] = (), *, exclusive: bool = False, mirror: bool = True) -> Subject:
    encoder = create_backbone(ModelSettings(backbone=backbone), seed=0, size=32).eval()
    prepared = Preprocessing(canvas_size=48, bit_depth=8, window="voi", mean=0.485, std=0.229, size=32, mirror=mirror)
    subject = Subject(Encoder(encoder, prepared, Provenance("random")))
    if not labels:
        return subject
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = torch.nn.Linear(encoder.feature_dim, len(labels))
    calibration = {name: {"slope": 1.5 + number, "intercept": 0.3 - number} for number, name in enumerate(labels)}
    facts = {"labels": list(labels), "exclusive": exclusive, "calibration": calibration}
    return replace(subject, head=head, classifier=facts)


def make_images(folder: Path) -> list[Path]:
    """A DICOM file whose polarity and window matter, and PNG files, one of them in a folder."""
    (folder / "more").mkdir(parents=True)
    tags: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1500, "WindowWidth": 2000}
    save_dicom(folder / "b.dcm", RAMP12, **tags)
    small = np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)
    cv2.imwrite(str(folder / "a.png"), cv2.resize(small, (90, 131)))
    cv2.imwrite(str(folder / "more" / "c.png"), 255 - cv2.resize(small, (60, 50)))
    return [folder / name for name in ("a.png", "b.dcm", "more/c.png")]


def run_bundle(root: Path, images: Path, out: Path, patch: pytest.MonkeyPatch) -> tuple[list[str], Any]:
    """Run it as `python -m monai.bundle run` does; return the CSV's header and its numbers by file."""
    patch.syspath_prepend(root)  # as `run` does, after what needs it
    for name in ("scripts", "scripts.prepare"):
        patch.setitem(sys.modules, name, None)
        del sys.modules[name]  # and again when the test ends
    workflow = ConfigWorkflow(
        config_file=str(root / "configs/inference.json"), meta_file=str(root / "configs/metadata.json"),
        workflow_type="infer", logging_file=False, bundle_root=str(root), dataset_dir=str(images), output_dir=str(out),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []  # what MONAI's own programs look for is there
    workflow.run()
    (file,) = out.iterdir()
    with file.open() as stream:
        header, *rows = csv.reader(stream)
    return header, {row[0]: [float(cell) for cell in row[1:]] for row in rows}


def expected(subject: Subject, root: Path, files: list[Path]) -> Any:
    contract = json.loads((root / "configs/inference.json").read_text())["contract"]
    images = torch.from_numpy(np.stack([shipped().image(file, contract) for file in files]))
    with torch.inference_mode():
        outputs = subject.graph(images)
    return (outputs[-1] if isinstance(outputs, tuple) else outputs).numpy()


def test_write__classifies_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("resnet10t", LABELS, exclusive=True)
    root = tmp_path / monai_bundle.FOLDER
    written = monai_bundle.write(subject, tmp_path)
    assert sorted(written) == sorted(path for path in root.rglob("*") if path.is_file())
    files = make_images(tmp_path / "images")
    header, found = run_bundle(root, tmp_path / "images", tmp_path / "out", monkeypatch)
    assert header == ["file", *LABELS]
    assert list(found) == [str(file) for file in files]
    wanted = expected(subject, root, files)
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-5)
    assert np.ptp(wanted, 0).min() > 1e-4  # the images differ, and so would a wrong preparation


def test_write__an_encoder_of_monai_gives_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("monai/densenet121")
    monai_bundle.write(subject, tmp_path)
    files = make_images(tmp_path / "images")
    root = tmp_path / monai_bundle.FOLDER
    header, found = run_bundle(root, tmp_path / "images", tmp_path / "out", monkeypatch)
    assert header == ["file", *(f"feature_{number}" for number in range(1024))]
    wanted = expected(subject, root, files)
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("backbone", ["resnet10t", "monai/densenet121", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("labels", [(), LABELS])
def test_write__is_verified_by_monai(tmp_path: Path, backbone: str, labels: tuple[str, ...]) -> None:
    monai_bundle.write(make_subject(backbone, labels), tmp_path)
    root = tmp_path / monai_bundle.FOLDER
    files = {f"{name}_file": str(root / "configs" / file) for name, file in _CONFIGS.items()}
    verify_net_in_out("network_def", device="cpu", **files)
    schema = tmp_path / "schema.json"  # it is there: nothing is downloaded
    schema.write_text(json.dumps(SPECIFIED))
    digest = {"hash_type": "sha256", "hash_val": hashlib.sha256(schema.read_bytes()).hexdigest()}
    verify_metadata(meta_file=files["meta_file"], filepath=schema, **digest)
    damaged = json.loads(Path(files["meta_file"]).read_text())
    damaged["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    Path(files["meta_file"]).write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="channel number"):
        verify_net_in_out("network_def", device="cpu", **files)
    del damaged["task"]
    Path(files["meta_file"]).write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(meta_file=files["meta_file"], filepath=schema, **digest)


_CONFIGS = {"meta": "metadata.json", "config": "inference.json"}


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("mirror", [True, False])
def test_inference__mirrors_and_calibrates(exclusive: bool, mirror: bool) -> None:
    subject = make_subject("resnet10t", LABELS, exclusive=exclusive, mirror=mirror)
    parser = ConfigParser(monai_bundle.inference(subject))
    net = parser.get_parsed_content("network_def").eval()
    net.load_state_dict(subject.state, strict=True)
    images = 3 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    finish = parser.get_parsed_content("postprocessing")
    with torch.inference_mode():
        scores = parser.get_parsed_content("inferer")(images, net)
        found = torch.stack([finish({"pred": score})["pred"] for score in scores])
        wanted = subject.graph(images)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_write__models_hold_tensors_alone(tmp_path: Path) -> None:
    subject = make_subject("resnet10t")
    monai_bundle.write(subject, tmp_path)
    state = torch.load(tmp_path / monai_bundle.FOLDER / "models/model.pt", weights_only=True)
    assert state.keys() == subject.backbone.net.state_dict().keys()
    assert "import medmoco" not in (tmp_path / monai_bundle.FOLDER / "scripts/prepare.py").read_text()


def test_readme__says_how_to_run_and_verify(tmp_path: Path) -> None:
    monai_bundle.write(make_subject("resnet10t", LABELS), tmp_path)
    text = (tmp_path / monai_bundle.FOLDER / "docs/README.md").read_text()
    for word in ("not a medical device", "monai.bundle run", "verify_net_in_out", "verify_metadata", *LABELS):
        assert word in text


# ---- volumes ----


@pytest.mark.parametrize("volumes", ["sliding", "resized"])
@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "nnunet/resenc_4stages_quarter"])
def test_write__an_encoder_of_volumes_gives_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, volumes: str
) -> None:
    nibabel = pytest.importorskip("nibabel")
    encoder = volume_encoder(name, volumes=volumes)
    monai_bundle.write(subject_of(encoder), tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    files = [images / "a.nii.gz", images / "b.nii", images / "series"]
    for seed, file in enumerate(files[:2]):
        nibabel.save(nibabel.Nifti1Image(head_like(seed=seed), np.diag([-1.2, 1.0, 1.5, 1.0])), file)
    save_series(files[2], random_pixels(9, 40, 30))
    root = tmp_path / monai_bundle.FOLDER
    header, found = run_bundle(root, images, tmp_path / "out", monkeypatch)
    assert len(header) == 1 + encoder.feature_dim
    assert list(found) == [str(file) for file in files]
    wanted = encoder.embed(files)
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.ptp(wanted, 0).max() > 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "monai/densenet121", "nnunet/resenc_4stages_quarter"])
def test_write__of_volumes_is_verified_by_monai(tmp_path: Path, name: str) -> None:
    monai_bundle.write(volume_subject(name), tmp_path)
    root = tmp_path / monai_bundle.FOLDER
    files = {f"{name}_file": str(root / "configs" / file) for name, file in _CONFIGS.items()}
    verify_net_in_out("network_def", device="cpu", **files)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SPECIFIED))
    digest = {"hash_type": "sha256", "hash_val": hashlib.sha256(schema.read_bytes()).hexdigest()}
    verify_metadata(meta_file=files["meta_file"], filepath=schema, **digest)
    text = (root / "docs/README.md").read_text()
    for word in ("32 x 32 x 32 voxels", "NIfTI", "DICOM series", "nibabel"):
        assert word in text
    assert ("dynamic-network-architectures" in text) == name.startswith("nnunet/")
