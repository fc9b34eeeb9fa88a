from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medmoco.errors import CheckpointError
from medmoco.exporting import verify as verify_module
from medmoco.exporting.parity import NotInstalledError, save_cases
from medmoco.exporting.verify import check_files, verify
from tests.helpers.made_files import write_linear_onnx


def seal(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}" for file in files
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an export of features = 2 * flatten(image), in ONNX."""
    out = tmp_path / "export"
    (out / "parts").mkdir(parents=True)
    write_linear_onnx(out, 2 * np.eye(16, dtype=np.float32))
    (out / "parity.json").write_text(json.dumps({"formats": [{"format": "onnx"}]}))
    (out / "parts" / "readme").write_text("text")
    images = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    save_cases(out / "parity.safetensors", images, {"features": 2 * images.reshape(3, 16)})
    seal(out)
    return out


def test_verify__says_what_was_compared(folder: Path) -> None:
    said: list[str] = []
    verify(folder, log=said.append)
    assert said[0] == "5 files are unchanged; outputs for 3 synthetic images:"
    title, row = said[1].splitlines()
    assert title.split()[:3] == ["format", "outputs", "difference"]
    assert row.split()[:4] == ["onnx", "features", "0.0e+00", "0.0001"]
    assert "onnxruntime" in row
    assert "torch" not in row
    assert len(said) == 2


def test_verify__other_outputs_are_an_error_after_the_table(folder: Path) -> None:
    images = np.ones((2, 1, 4, 4), np.float32)
    save_cases(folder / "parity.safetensors", images, {"features": 2.001 * images.reshape(2, 16)})
    seal(folder)
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"(?s)failed verification.onnx: encoder\.onnx gives other outputs"):
        verify(folder, log=said.append)
    assert said[1].splitlines()[1].split() == ["onnx", "FAILED"]


def test_verify__absent_library_is_said_and_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise NotInstalledError("onnxruntime")

    monkeypatch.setattr(verify_module, "compare", absent)
    said: list[str] = []
    verify(folder, log=said.append)
    assert "onnx    not checked: onnxruntime is not installed" in said[1]
    assert said[2] == "1 of 1 formats were not checked"


def test_verify__what_can_run_code_is_loaded_only_when_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "parity.json").write_text(json.dumps({"formats": [{"format": "program"}, {"format": "monai-bundle"}]}))
    seal(folder)
    loaded: list[str] = []

    def compare(name: str, *_: object) -> None:
        loaded.append(name)
        raise NotInstalledError("its library")

    monkeypatch.setattr(verify_module, "compare", compare)
    said: list[str] = []
    verify(folder, log=said.append)
    assert not loaded
    assert said[1].count("not loaded: it can run code") == 2
    assert said[2] == "2 of 2 formats were not checked"
    verify(folder, log=said.append, trust=True)
    assert loaded == ["program", "monai-bundle"]


def test_verify__a_changed_file_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "compare", pytest.fail)
    content = bytearray((folder / "encoder.onnx").read_bytes())
    content[200] ^= 1
    (folder / "encoder.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoder\.onnx has changed: its SHA-256 differs"):
        verify(folder, log=pytest.fail)


def test_check_files__every_changed_byte_file_is_found(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert check_files(folder) == len(files) - 1
    for file in files:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(CheckpointError):
            check_files(folder)
        file.write_bytes(content)


def test_check_files__missing_and_extra_are_named(folder: Path) -> None:
    (folder / "parts" / "readme").unlink()
    (folder / "parts" / "other").write_text("mine")
    with pytest.raises(CheckpointError, match=r"(?s)parts/readme is missing.parts/other is not part of the export"):
        check_files(folder)
    for number in range(9):
        (folder / f"more-{number}").touch()
    with pytest.raises(CheckpointError, match="and 8 more") as error:
        check_files(folder)
    assert len(str(error.value).splitlines()) == 5


def test_check_files__no_export_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an export of medmoco"):
        check_files(tmp_path)
    (folder / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        check_files(folder)


def test_verify__what_export_wrote(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run and the data are not needed; sha256sum agrees."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(exported[1], elsewhere)
    assert check_files(elsewhere) == 7
    parity = json.loads((elsewhere / "parity.json").read_text())
    parity["formats"] = [record for record in parity["formats"] if record["format"] == "onnx"]  # the quick one
    (elsewhere / "parity.json").write_text(json.dumps(parity))
    seal(elsewhere)
    said: list[str] = []
    verify(elsewhere, log=said.append)
    assert "onnxruntime" in said[1]
