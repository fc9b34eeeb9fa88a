from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medmoco import config
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.supervised.classifier import Classifier, load_classifier
from medmoco.evaluation.supervised.classifier_folder import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.exporting import card
from medmoco.exporting import export as export_module
from medmoco.exporting.export import ALL, FORMATS, export
from medmoco.exporting.formats import safetensors_file
from medmoco.exporting.parity import STATE_TOLERANCE, load_cases
from medmoco.exporting.sources import surroundings
from medmoco.exporting.standalone import standalone_source
from medmoco.exporting.subject import Subject, subject_of
from medmoco.exporting.verify import verify
from medmoco.models.backbones import create_backbone, load_weights
from medmoco.training.checkpoint import load_checkpoint
from tests.helpers.volume_subjects import head_like, volume_encoder

ROOT = Path(__file__).parents[2]
NAMES = [
    "MODEL_CARD.md", "SHA256SUMS", "encoder.onnx", "encoder.safetensors", "parity.json", "parity.safetensors",
    "prepare.py", "preprocessing.json",
]  # fmt: skip
ONE = ("safetensors",)


@pytest.fixture
def source(tmp_path: Path, make_run) -> Encoder:
    return load_encoder(make_run(tmp_path, "model.backbone=resnet10t"))


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reading back, which takes seconds, where a test is about something else."""

    def compare_nothing(name: str, folder: Path, *_: object) -> dict[str, object]:
        return {"format": name, "path": folder.name, "max_relative_difference": 0.0, "tolerance": 1e-5}

    monkeypatch.setattr(export_module, "compare", compare_nothing)


def test_export__all_files_are_as_readable_as_any(exported: tuple[Path, Path]) -> None:
    run, out = exported
    assert {file.stat().st_mode for file in out.iterdir()} == {(run / "log.txt").stat().st_mode}


def test_export__weights_have_plain_timm_names(exported: tuple[Path, Path]) -> None:
    run, out = exported
    weights = load_file(out / "encoder.safetensors")
    timm.create_model("resnet18", in_chans=1, num_classes=0).load_state_dict(weights, strict=True)
    saved = load_checkpoint(run / "checkpoints", pytest.fail)["model"]
    for name, value in weights.items():
        assert torch.equal(value, saved[f"query_encoder.backbone.net.{name}"]), name


def test_export__parity_is_on_record(exported: tuple[Path, Path]) -> None:
    parity = json.loads((exported[1] / "parity.json").read_text())
    assert parity["images"] == {"synthetic": 4, "training": 4}
    assert [record["format"] for record in parity["formats"]] == ["safetensors", "onnx"]
    assert [record["tolerance"] for record in parity["formats"]] == [1e-5, 1e-4]
    for record in parity["formats"]:
        assert 0 <= record["max_relative_difference"] <= record["tolerance"]
        assert "medmoco" not in record["libraries"]
    assert set(parity["formats"][0]["half_precision"]) == {"float16", "bfloat16"}
    assert set(parity["formats"][1]["libraries"]) == {"numpy", "onnxruntime"}


def test_export__cases_are_synthetic_alone(exported: tuple[Path, Path]) -> None:
    run, out = exported
    images, expected = load_cases(out / "parity.safetensors")
    assert images.shape == (4, 1, 32, 32)
    net = timm.create_model("resnet18", in_chans=1, num_classes=0).eval()
    net.load_state_dict(load_file(out / "encoder.safetensors"))
    with torch.inference_mode():
        features = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(expected["features"], features, atol=1e-5 * np.abs(features).max())
    encoder = load_encoder(run)
    (real,) = surroundings(encoder, subject_of(encoder), pytest.fail).views
    assert not np.isin(real.reshape(4, -1).mean(1), images.reshape(4, -1).mean(1)).any()


def test_export__no_byte_names_a_person_or_a_place(exported: tuple[Path, Path]) -> None:
    run, out = exported
    assert sorted(file.name for file in out.iterdir()) == NAMES
    words = ["planted", "site-packages", 'File "', str(run), str(out.parent), str(ROOT), sys.prefix]
    assert not [
        f"{file.name}: {word}" for file in out.iterdir() for word in words if word.encode() in file.read_bytes()
    ]


def test_export__content_is_an_allow_list(exported: tuple[Path, Path]) -> None:
    _, out = exported
    assert onnx.load(out / "encoder.onnx").producer_name == "medmoco"
    contract = json.loads((out / "preprocessing.json").read_text())
    assert set(contract) == {
        "steps", "grayscale", "canvas", "resize", "normalise", "mirror", "scored_stages", "input", "outputs",
        "classifier", "model", "formats", "licence", "libraries", "files",
    }  # fmt: skip
    assert set(contract["files"]) == {"encoder.onnx", "encoder.safetensors", "prepare.py"}
    assert set(json.loads((out / "parity.json").read_text())) == {"images", "measure", "formats"}
    assert "- Licence: CC-BY-4.0" in (out / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("place", ["card", "weights", "metadata"])
def test_export__a_name_inside_is_refused_and_nothing_is_left(
    tmp_path: Path, source: Encoder, unproved: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write = safetensors_file.write

    def leak(subject: Subject, folder: Path) -> list[Path]:
        (file,) = write(subject, folder)
        if place == "weights":
            file.write_bytes(file.read_bytes() + b"planted-patient-1")
        else:
            save_file(load_file(file), file, {"row": "planted-file-3.png"})
        return [file]

    if place == "card":
        monkeypatch.setattr(card, "write_card", lambda *_: "made of planted-file-3.png")
    else:
        monkeypatch.setattr(safetensors_file, "write", leak)
    file = "MODEL_CARD.md" if place == "card" else "encoder.safetensors"
    with pytest.raises(CheckpointError, match=f"{file} contains the .*; nothing was exported") as error:
        export(source, tmp_path / "exports" / "out", ONE)
    assert "planted" not in str(error.value)
    assert list((tmp_path / "exports").iterdir()) == []


def test_export__other_outputs_are_refused_and_nothing_is_left(
    tmp_path: Path, source: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = safetensors_file.write

    def wrong(subject: Subject, folder: Path) -> list[Path]:
        (file,) = write(subject, folder)
        state = load_file(file)
        save_file(state | {"layer1.0.bn1.running_mean": state["layer1.0.bn1.running_mean"] + 0.01}, file)
        return [file]

    monkeypatch.setattr(safetensors_file, "write", wrong)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors gives other outputs") as error:
        export(source, tmp_path / "exports" / "out", ONE)
    assert "Nothing was exported" in str(error.value)
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.usefixtures("unproved")
def test_export__an_empty_folder_is_filled(tmp_path: Path, source: Encoder) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert [file.name for file in export(source, out, ONE)] == [name for name in NAMES if "onnx" not in name]


def test_export__folder_with_something_in_it_is_refused(tmp_path: Path, source: Encoder) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not an empty folder"):
        export(source, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_export__diverged_run_is_refused(tmp_path: Path, source: Encoder) -> None:
    nn.init.constant_(next(source.module.parameters()), float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        export(source, tmp_path / "out", ONE)
    assert not (tmp_path / "out").exists()


def test_export__unknown_format_is_refused_with_those_there_are(tmp_path: Path, source: Encoder) -> None:
    with pytest.raises(SettingsError, match=r"unknown format 'tensorflow'; the formats are safetensors, .*, and all"):
        export(source, tmp_path / "out", ["onnx", "tensorflow"])


def test_export__a_format_that_cannot_hold_the_network_is_said_before_anything_is_written(
    tmp_path: Path, source: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "write", pytest.fail)
    with pytest.raises(SettingsError, match=r"(?s)nothing was exported.torchvision: resnet10t is not in torchvision"):
        export(source, tmp_path / "out", ["safetensors", "torchvision"])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unproved")
def test_export__all_leaves_out_what_cannot_hold_the_network_and_says_so(
    tmp_path: Path, source: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: FORMATS[name] for name in ("safetensors", "timm", "torchvision", "detectron2")}
    monkeypatch.setattr(export_module, "FORMATS", few)
    told: list[str] = []
    export(source, tmp_path / "out", [ALL], warn=told.append)
    assert [line.partition(":")[0] for line in told] == ["skipped torchvision", "skipped detectron2"]
    assert list(json.loads((tmp_path / "out" / "preprocessing.json").read_text())["formats"]) == ["safetensors", "timm"]


# ---- every format, on networks of real size, through processes of their own ----

EVERYWHERE = {"safetensors", "timm", "torchvision", "huggingface", "onnx", "program"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "wanted"),
    [
        ("resnet50", 64, {*EVERYWHERE, "detectron2"}),
        ("densenet121", 64, EVERYWHERE),
        ("vit_small_patch16_224", 64, EVERYWHERE),
        ("monai/densenet121", 64, {"safetensors", "torchvision", "onnx", "program"}),
        ("monai/seresnet50", 64, {"safetensors", "onnx", "program"}),
        ("convnext_atto", 64, EVERYWHERE - {"torchvision"}),
        ("swin_tiny_patch4_window7_224", 224, EVERYWHERE - {"torchvision"}),
    ],
)
def test_export__every_format_of_other_architectures(
    tmp_path: Path, make_run, backbone: str, size: int, wanted: set[str]
) -> None:
    run = make_run(
        tmp_path, f"model.backbone={backbone}", f"views.size={size}", f"data.canvas_size={size}", "data.bit_depth=16"
    )
    source = load_encoder(run)
    out = tmp_path / "out"
    export(source, out, [ALL], warn=lambda _: None)
    records = {record["format"]: record for record in json.loads((out / "parity.json").read_text())["formats"]}
    assert wanted <= set(records)
    assert not {"torchvision", "detectron2", "timm", "huggingface"} - wanted & set(records)
    said: list[str] = []
    verify(out, log=said.append, trust=True)
    assert all(f"\n{name} " in "\n" + said[1] for name in wanted)
    for name in wanted - {"onnx", "program"}:
        assert records[name]["max_relative_difference"] <= STATE_TOLERANCE
        assert set(records[name]["half_precision"]) == {"float16", "bfloat16"}
    _comes_back_in(source, out, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "convnext_atto"])
def test_export__a_classifier_of_patches_as_what_holds_the_computation(tmp_path: Path, backbone: str) -> None:
    settings = config.load(None, [
        "out=run", "data.manifest=data", "data.root=data", f"model.backbone={backbone}", "views.size=64",
        "evaluate.mirror=true",
    ])  # fmt: skip
    encoder = create_backbone(settings.model, seed=0, size=64)
    head = nn.Linear(encoder.feature_dim, 2)
    facts = describe_classifier(
        settings, ("A", "B"), trained="fine-tuned", encoder={}, val_auroc={"A": 0.8, "B": None}, top_patches=3,
        calibration={name: {"kind": "platt", "slope": 1.5, "intercept": -0.5} for name in "AB"},
        operating_points={"A": [], "B": []},
    )  # fmt: skip
    save_classifier(tmp_path / "c", ClassifierNetwork(encoder, head, mirror=True, top_patches=3), facts)
    told: list[str] = []
    with pytest.raises(SettingsError, match=r"safetensors: the head scores patches.*use onnx or program"):
        export(load_classifier(tmp_path / "c"), tmp_path / "out")
    export(load_classifier(tmp_path / "c"), tmp_path / "out", [ALL], warn=told.append)
    contract = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert {"onnx", "program"} == contract["formats"].keys()
    assert contract["outputs"][2]["shape"] == ["batch", 2, "height", "width"]
    assert (contract["classifier"]["head"], contract["classifier"]["top_patches"]) == ("patches", 3)
    assert "the mean of its 3 highest patch scores" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    verify(tmp_path / "out", log=told.append, trust=True)
    assert "onnx     logits, patch_scores, probabilities" in told[-1]


def test_export__an_encoder_of_stages_is_exported_with_its_last_and_scored_with_all(
    tmp_path: Path, unproved: None
) -> None:
    encoder = load_encoder("random", config.load(None, [
        "out=run", "data.manifest=data", "data.root=data", "model.backbone=resnet10t", "views.size=32",
        "evaluate.stages=3",
    ]))  # fmt: skip
    told: list[str] = []
    export(encoder, tmp_path / "out", ONE, warn=told.append)
    assert "features of its last 3 stages" in told[0]
    contract = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert (contract["scored_stages"], contract["outputs"][0]["shape"]) == (3, ["batch", 512])
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40), np.uint8)
    again = load_encoder(tmp_path / "out")
    np.testing.assert_array_equal(again.embed(images), encoder.embed(images))
    assert again.feature_dim == 896


@pytest.mark.slow
def test_export__a_classifier_of_stages_as_what_holds_the_computation(tmp_path: Path) -> None:
    settings = config.load(None, [
        "out=run", "data.manifest=data", "data.root=data", "model.backbone=resnet10t", "views.size=64",
        "evaluate.mirror=true", "evaluate.stages=3",
    ])  # fmt: skip
    encoder = load_encoder("random", settings).module
    facts = describe_classifier(
        settings, ("A",), trained="linear probe", encoder={}, val_auroc={"A": 0.8},
        calibration={"A": {"kind": "platt", "slope": 1.5, "intercept": -0.5}}, operating_points={"A": []},
    )  # fmt: skip
    network = ClassifierNetwork(encoder, nn.Linear(encoder.feature_dim, 1), mirror=True)
    save_classifier(tmp_path / "c", network, facts)
    with pytest.raises(SettingsError, match=r"safetensors: the head takes features of 3 stages.*use onnx or program"):
        export(load_classifier(tmp_path / "c"), tmp_path / "out")
    told: list[str] = []
    export(load_classifier(tmp_path / "c"), tmp_path / "out", [ALL], warn=told.append)
    contract = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert {"onnx", "program"} == contract["formats"].keys()
    verify(tmp_path / "out", log=told.append, trust=True)


def _comes_back_in(source: Encoder, out: Path, formats: Sequence[str] | set[str]) -> None:
    """Load weights files into an emptied encoder; the features are the same to 1e-6."""
    files = {
        "safetensors": "encoder.safetensors", "huggingface": "huggingface/model.safetensors",
        "torchvision": "encoder.torchvision.pth", "detectron2": "encoder.detectron2.pth",
        "monai-bundle": "monai_bundle/models/model.pt",
    }  # fmt: skip
    images, expected = load_cases(out / "parity.safetensors")
    backbone = source.module
    for name in files.keys() & set(formats):
        for parameter in backbone.parameters():
            nn.init.zeros_(parameter)
        load_weights(backbone, out / files[name])
        with torch.inference_mode():
            features = backbone(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(features, expected["features"], rtol=0, atol=1e-6 * np.abs(features).max())


@pytest.mark.usefixtures("unproved")
def test_export__says_that_scores_average_mirror_images(tmp_path: Path, make_run) -> None:
    lines: list[str] = []
    run = make_run(tmp_path, "model.backbone=resnet10t", "evaluate.mirror=true")
    export(run, tmp_path / "out", ONE, warn=lines.append)
    assert [line for line in lines if "mirror image (evaluate.mirror)" in line]
    lines.clear()
    export(make_run(tmp_path / "other", "model.backbone=resnet10t"), tmp_path / "plain", ONE, warn=lines.append)
    assert not [line for line in lines if "mirror" in line]


@pytest.mark.slow
def test_export__volumes(tmp_path: Path) -> None:
    encoder, out = volume_encoder(), tmp_path / "export"
    formats = ["safetensors", "onnx"]
    export(encoder, out, formats, warn=lambda _: None)
    assert verify(out) == dict.fromkeys(formats, "verified")
    parity = json.loads((out / "parity.json").read_text())
    assert parity["images"] == {"synthetic": 2, "training": 0}
    assert max(record["max_relative_difference"] for record in parity["formats"]) < 1e-5
    contract = json.loads((out / "preprocessing.json").read_text())
    assert contract["steps"][-3:] == ["windows", "normalise", "mirror"]
    assert contract["mirror"]["axis"] == "left_right"
    assert contract["input"]["shape"] == ["batch", 1, 32, 32, 32]
    assert contract["outputs"][0]["meaning"].endswith("the mean over its windows")
    assert (out / "prepare.py").read_text() == standalone_source(3)
    loaded = load_encoder(out)
    assert loaded.preprocessing == encoder.preprocessing
    np.testing.assert_array_equal(loaded.embed([head_like()]), encoder.embed([head_like()]))


def test_export__volumes_in_formats_of_images(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="timm: timm has no networks for volumes"):
        export(volume_encoder(), tmp_path / "export", ["timm"], warn=lambda _: None)


def test_export__classifiers_of_volumes_are_refused(tmp_path: Path) -> None:
    encoder = volume_encoder()
    classifier = object.__new__(Classifier)
    object.__setattr__(classifier, "encoder", encoder)
    with pytest.raises(SettingsError, match="classifier of volumes cannot be exported"):
        export(classifier, tmp_path / "export")
