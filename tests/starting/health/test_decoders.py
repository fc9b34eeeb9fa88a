from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.data.image_io.formats.dicom import DECODERS
from medmoco.data.image_io.intensity import Unreadable
from medmoco.starting.health import decoders as module
from medmoco.starting.health.decoders import check_decoders


def test_check_decoders__all_work_or_are_there() -> None:
    decoded, present, missing = check_decoders()
    assert missing == {}
    assert len(decoded) == 9
    assert len(present) == 6


def test_check_decoders__know_every_syntax_that_is_read() -> None:
    known = {**module._NATIVE, **module._ENCODED, **module._OTHERS}.values()
    assert DECODERS.keys() - set(known) == {"1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93"}  # of volumes, part 2


def test_check_decoders__a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real, syntaxes = module.read_dicom, module._ENCODED

    def broken(file: object, *arguments: object, **options: object) -> object:
        content = real(file, *arguments, **options)  # type: ignore[arg-type]
        if str(syntaxes["JPEG-LS"]).encode() in Path(str(file)).read_bytes()[:1000]:
            raise Unreadable("no decoder")
        return content

    monkeypatch.setattr(module, "read_dicom", broken)
    found = check_decoders()
    assert found.missing == {"JPEG-LS": "pyjpegls"}
    assert "JPEG-LS" not in found.decoded


def test_check_decoders__wrong_pixels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.read_dicom

    def inverted(*arguments: object, **options: object) -> object:
        image = real(*arguments, **options)  # type: ignore[arg-type]
        image.pixels[:] = np.iinfo(image.pixels.dtype).max - image.pixels
        return image

    monkeypatch.setattr(module, "read_dicom", inverted)
    assert check_decoders().decoded == []
