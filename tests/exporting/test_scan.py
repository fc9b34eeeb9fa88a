from __future__ import annotations

import bz2
import gzip
import io
import lzma
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save

from medmoco import config
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import CheckpointError
from medmoco.exporting import scan
from medmoco.exporting.scan import Search, folder_names, local_names, manifest_names, refuse_names

ID = "planted-patient-17"
NAMES = {"an id": [ID, "ab12", "10000032", "4711", ""], "a folder": ["/data/site/films"]}
NOISE = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a/innocent.bin", content)
    return stream.getvalue()


def torch_saved(content: bytes) -> bytes:
    stream = io.BytesIO()
    torch.save({"note": content.decode("latin1"), "weights": torch.ones(3)}, stream)
    return stream.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zip, stored": lambda content: zipped(content, zipfile.ZIP_STORED),
    "zip, deflated": zipped,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip in zip in gzip": lambda content: gzip.compress(zipped(zipped(content))),
    "torch.save": torch_saved,
    "safetensors header": lambda content: save({"a": np.ones(3)}, {"note": content.decode("latin1")}),
    "inside weights": lambda content: b"\0" + NOISE[:100_001] + content + NOISE,
    "inside utf-16 or whatever else is binary": lambda content: b"\xff\0" + b"X" + content + b"q",
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_content__a_name_is_found_however_it_is_packed(packing: str) -> None:
    search = Search(NAMES)
    assert search.content(PACKINGS[packing](f"see {ID}, please".encode())) == "an id"
    assert search.content(PACKINGS[packing](b"see planted-patient-x7, please")) is None


def test_content__archive_members_are_named_too() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"films/{ID}.png", b"")
    assert Search(NAMES).content(stream.getvalue()) == "an id"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"patient": "ab12"}', "an id"),
        ("of ab12.", "an id"),
        ("of cab12 or ab123", None),  # parts of words
        ('{"bytes": 10000032, "loss": 0.10000032}', None),  # numbers
        ("offsets [10000032,10000032]", None),
        ('{"patient": "10000032"}', "an id"),
        ("p/10000032/film.png", "an id"),
        ('"4711"', None),  # too short a number to mean anybody
        ("at /data/site/films/", "a folder"),
        ("nothing, and the names hold an empty one", None),
        ("", None),
        ("abc", None),
    ],
)
def test_text__words_and_not_numbers(text: str, found: str | None) -> None:
    assert Search(NAMES).content(text.encode()) == found


def test_content__short_names_are_not_searched_for_in_weights() -> None:
    assert Search(NAMES).content(NOISE + b"ab12" + NOISE) is None
    assert Search(NAMES).content(NOISE + b"x10000032x" + NOISE) == "an id"


@pytest.mark.parametrize("offset", [*range(16), 4096, 16_777_216])
def test_content__any_position(offset: int) -> None:
    content = b"\0" * offset + ID.encode()
    assert Search(NAMES).content(b"\xff" + content) == "an id"


def test_content__names_that_begin_alike() -> None:
    search = Search({"short": ["scan"], "middle": ["scanner-1"], "long": ["scanner-1/room-2"]})
    assert search.content(b"\0scanner-1/room-3") == "middle"
    assert search.content(b"\0xscanner-1") == "middle"
    assert search.content(b"in scan of scanner-12") == "short"
    assert search.content(b"in scans of scanner-1/room-2") == "middle"
    assert search.content(b"scanner-12/room-2") is None
    assert search.content(b"\0at the end, scan") is None  # too short for binary content, whatever would fit behind it


def test_content__without_any_names() -> None:
    assert Search({"an id": [""]}).content(b"\0anything") is None


def test_content__agrees_with_a_plain_search() -> None:
    generator = np.random.default_rng(4)
    names = {f"{number:05d}-{generator.integers(1000):03d}" for number in range(3000)}
    search = Search({"name": names})
    for _ in range(60):
        content = bytearray(NOISE[:2000])
        word = f"{generator.integers(3000):05d}-{generator.integers(1000):03d}".encode()
        place = int(generator.integers(1900))
        content[place : place + len(word)] = word
        expected = any(name.encode() in content for name in names)
        assert (search.content(bytes(content)) == "name") is expected


def test_refuse_names__says_the_file_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "clean.txt").write_text("clean")
    refuse_names(tmp_path, NAMES)
    (tmp_path / "parts" / "model.pt2").write_bytes(zipped(ID.encode()))
    with pytest.raises(CheckpointError, match=r"parts/model\.pt2 contains an id") as error:
        refuse_names(tmp_path, NAMES)
    assert ID not in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


def test_refuse_names__a_file_called_so(tmp_path: Path) -> None:
    (tmp_path / f"{ID}.onnx").touch()
    with pytest.raises(CheckpointError, match="contains an id"):
        refuse_names(tmp_path, NAMES)


def test_local_names__user_machine_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "planted-user")
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "planted-host.hospital.example")
    names = local_names(tmp_path / "run")
    everything = set().union(*names.values())
    assert {"planted-user", "planted-host", "planted-host.hospital.example", "site-packages"} <= everything
    assert str(tmp_path / "run") in everything
    assert "root" not in everything
    assert str(Path(scan.__file__).parents[2]) in everything


def test_folder_names__short_ones_identify_nobody() -> None:
    assert folder_names(Path("/tmp"), Path("/")) == set()
    assert "runs/cxr" in folder_names(Path("runs/cxr"))
    assert "exported" not in folder_names(Path("exported"))


def test_manifest_names__paths_files_and_ids(tmp_path: Path) -> None:
    rows = {"Path": ["a/p1/view1.png", "b/image.png"], "PatientID": ["P-1", "P-2"], "StudyID": ["S-1", ""]}
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    settings = config.load(None, ["out=run", f"data.manifest={tmp_path}", f"data.root={tmp_path}"])
    names = manifest_names(load_manifest(settings.data, ("train",)).values())
    assert names["the Path of a row"] == {"a/p1/view1.png", "b/image.png", "view1.png", "view1"}
    assert names["the id of a patient or study"] - {""} == {"P-1", "P-2", "S-1"}
