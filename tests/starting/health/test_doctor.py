from __future__ import annotations

import getpass
import platform
from importlib import import_module
from pathlib import Path

import pytest

import medmoco
from medmoco.starting.health import doctor as module
from medmoco.starting.health.finding import findings_text


def test_doctor__fits_on_a_screen_and_can_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = medmoco.doctor()
    text = findings_text(findings)
    assert len(text.splitlines()) <= 24
    assert {"medmoco", "libraries", "CPU", "threads", "memory", "GPU", "open files", "working folder", "disk space",
            "DICOM"} <= {finding.name for finding in findings}  # fmt: skip
    assert not [finding for finding in findings if finding.state == "fault"]
    assert all(finding.remedy for finding in findings if finding.state != "ok")
    for secret in (str(tmp_path), platform.node(), str(Path.home()), f"/{getpass.getuser()}/"):
        assert len(secret) < 2 or secret not in text
    assert not list(tmp_path.iterdir())
    assert medmoco.__version__ in findings[0].text


def test_doctor__a_broken_library_ends_the_checks_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return import_module(name)

    monkeypatch.setattr(module, "import_module", broken)
    faults = [finding for finding in medmoco.doctor() if finding.state == "fault"]
    assert [finding.name for finding in faults] == ["torchvision"]
    assert faults[0].text == "cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    assert faults[0].remedy.endswith("--force-reinstall torch torchvision")
    assert not [finding for finding in medmoco.doctor() if finding.name == "CPU"]


def test_doctor__a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", missing)
    assert [(finding.name, finding.remedy) for finding in medmoco.doctor() if finding.state == "fault"] == [
        ("monai", "install it: pip install monai")
    ]
