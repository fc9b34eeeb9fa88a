from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmoco.models.interop import preparation
from medmoco.models.interop.detect_format import find
from medmoco.models.interop.preparation import preparation_of
from medmoco.models.interop.schemes import Preparation
from medmoco.models.interop.state_dicts import read_contents
from medmoco.utils.files import sha256_of
from tests.helpers import foreign

PROCESSOR = {
    "crop_size": {"height": 518, "width": 518}, "do_center_crop": True, "image_mean": [0.5307] * 3,
    "image_std": [0.2583] * 3, "size": {"shortest_edge": 518},
}  # fmt: skip
TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "input_size": [3, 288, 288], "crop_pct": 0.95},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(foreign.torchvision_resnet().state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def prepared(file: Path, backbone: str = "resnet18") -> Preparation:
    return preparation_of(file, find(read_contents(file)), backbone)


def test_preparation_of__a_plain_file_alone_is_unknown(file: Path) -> None:
    found = prepared(file)
    assert (found.mean, found.std, found.size) == (None, None, None)


def test_preparation_of__files_of_hubs_next_to_it_state_it(file: Path) -> None:
    (file.parent / "config.json").write_text(json.dumps(TIMM))
    found = prepared(file)
    assert (found.mean, found.std, found.size) == (0.5, 0.2, 288)
    assert "288 x 288 pixels, the middle 95 % of the shorter side; RGB" in found.note
    assert prepared(file, "resnet34").mean is None  # config.json is about another network
    (file.parent / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    found = prepared(file)
    assert (found.mean, found.std, found.size) == (0.5307, 0.2583, 518)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"image_mean": null, "image_std": 1, "size": 3}', '{"image_mean": [128, 128, 128]}']
)
def test_preparation_of__other_files_of_these_names_are_no_statement(file: Path, text: str) -> None:
    for name in ("config.json", "preprocessor_config.json", "import.json"):
        (file.parent / name).write_text(text)
    assert prepared(file).mean is None
    (file.parent / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "image_mean": [127.5] * 3}))
    assert prepared(file).mean is None


def test_preparation_of__a_published_file_is_known_by_its_name_and_hash(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = file.rename(file.with_name(f"resnet18-{sha256_of(file)[:8]}.pth"))
    assert prepared(published).mean is None  # nobody has published it
    cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 160, 160), "crop_pct": 1.0}
    known: dict[str, Any] = {"url": f"https://example.org/{published.name}", **cfg}
    monkeypatch.setattr(preparation, "get_pretrained_cfg", lambda _: SimpleNamespace(**known))
    found = prepared(published)
    assert (found.mean, found.std, found.size) == (0.5, 0.25, 160)
    assert found.note.startswith(f"stated by timm for {published.name}: 160 x 160 pixels; RGB")
    changed = torch.load(published, weights_only=True)
    torch.save({**changed, "fc.bias": changed["fc.bias"] + 1}, published)
    assert prepared(published).mean is None  # its name no longer tells the truth


def test_preparation_of__formats_of_known_projects(tmp_path: Path) -> None:
    net = foreign.dinov2_vit()
    for name, state in {"a": foreign.dinov2(net), "b": foreign.transformers_dinov2(net, "backbone.")}.items():
        torch.save(state, tmp_path / f"{name}.pth")
        found = prepared(tmp_path / f"{name}.pth", "vit_small_patch14_dinov2")
        assert (found.mean, found.std, found.size) == (0.449, 0.226, 518)
    chosen = find(read_contents(tmp_path / "a.pth"), scheme="rad-dino").scheme
    assert (chosen.preparation.mean, chosen.preparation.std) == (0.5307, 0.2583)


def test_preparation_of__lite0_of_lukemelas_but_no_other_efficientnet(tmp_path: Path) -> None:
    import timm

    for name, mean in {"tf_efficientnet_lite0": 127 / 255, "tf_efficientnet_b0": None}.items():
        torch.save(foreign.lukemelas(timm.create_model(name)), tmp_path / "w.pth")
        found = prepared(tmp_path / "w.pth", name)
        assert found.mean == (mean and pytest.approx(mean, abs=1e-6))
