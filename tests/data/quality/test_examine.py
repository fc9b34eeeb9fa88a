"""Every kind of bad file, made for real, and what is known of good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.fingerprints import pattern, pixel_digest
from medmoco.data.image_io.images import FileFormat, read_image
from medmoco.data.quality.examine import Examined, Images, examine, reading_of
from medmoco.utils.jobs.blocks import unfinished
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.films import film

GRAY = FileFormat("PNG", 8, "MONOCHROME2")


def look(folder: Path, names: list[str], **settings: Any) -> Examined:
    data = DataSettings(manifest=folder, root=str(folder), workers=1, **settings)
    files = np.array([str(folder / name) for name in names], dtype=object)
    images = Images(files, np.ones(len(files), np.int64), np.full(len(files), "", dtype=object))
    with unfinished(folder / "unfinished", reading_of(images, data)) as kept:
        return examine(images, data, kept)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind of fault, named by it."""
    pixels = film(1)
    for kind in ("png", "jpg"):
        Image.fromarray(pixels).save(tmp_path / f"whole.{kind}")
        (tmp_path / f"cut off.{kind}").write_bytes((tmp_path / f"whole.{kind}").read_bytes()[:-40])
    save_dicom(tmp_path / "whole.dcm", RAMP12)
    (tmp_path / "cut off.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[:-100])
    (tmp_path / "empty.png").touch()
    (tmp_path / "unreadable.png").write_text("an HTML page instead of an image")
    (tmp_path / "pathology").mkdir()
    middle = bytearray((tmp_path / "whole.png").read_bytes())
    middle[len(middle) // 2 : len(middle) // 2 + 200] = bytes(200)
    (tmp_path / "damaged.png").write_bytes(middle)
    Image.fromarray(film(2, 200, 180)).save(tmp_path / "too large.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("gone.png", "file missing", "does not exist"),
        ("empty.png", "file empty", "the file is empty"),
        ("cut off.png", "file cut off", "has no end"),
        ("cut off.jpg", "file cut off", "has no end marker"),
        ("cut off.dcm", "file cut off", "ends inside its pixel data"),
        ("damaged.png", "file damaged", "damaged"),
        ("too large.png", "file too large", "data.max_pixels"),
        ("unreadable.png", "file unreadable", "its content is not PNG, JPEG, TIFF or DICOM"),
        ("pathology", "file unreadable", "is a folder"),
    ],
)
def test_examine__faults_have_their_kind(folder: Path, name: str, kind: str, words: str) -> None:
    found = look(folder, ["whole.png", name], max_pixels=20_000)
    assert found.readable.tolist() == [True, False]
    assert list(found.faults) == [(1, kind)]
    assert words in found.faults[1, kind]
    assert name not in found.faults[1, kind]
    assert not found.patterns[1].any()


def test_examine__knows_each_image_and_keeps_none(folder: Path) -> None:
    Image.fromarray(film(3, 50, 70)).convert("RGB").save(folder / "colour.jpg")
    Image.fromarray(np.full((40, 30), 9, np.uint8)).save(folder / "constant.png")
    names = ["whole.png", "whole.dcm", "colour.jpg", "constant.png"]
    found = look(folder, names)
    for at, name in enumerate(names):
        pixels = read_image(folder / name).pixels
        assert found.digests[at].tobytes() == pixel_digest(pixels)
        assert found.sizes[at].tolist() == list(pixels.shape)
        np.testing.assert_array_equal(found.patterns[at], pattern(pixels))
    formats = [found.formats[at] for at in found.format_of]
    assert formats == [GRAY, FileFormat("DICOM", 12, "MONOCHROME2"), FileFormat("JPEG", 8, "RGB"), GRAY]
    assert found.constant.tolist() == [False, False, False, True]
    assert {notice.split(";")[0].split(":")[0]: at for notice, at in found.notices.items()} == {
        "stored in colour": [2],
        "no VOI window in the file": [1],
    }
    assert not found.faults
