"""What the headers of PNG and JPEG files say, written chunk by chunk and marker by marker."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from medmoco.data.dicom import check_codestream
from medmoco.data.grey_levels import Unreadable
from medmoco.data.png_jpeg import check_jpeg, jpeg_header

FRAME_HEADER = struct.pack(">HBHHB", 11, 8, 5, 7, 1) + b"\1\x11\0"


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_check_jpeg__end(progressive: bool) -> None:
    data = saved("JPEG", progressive=progressive)
    thumbnail = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data + data[2:]
    filled = data[:2] + b"\xff" + data[2:]
    for whole in (data, data + bytes(9), data + b"\xff\xda more", data + data[:-2], thumbnail, filled):
        check_jpeg(whole, jpeg_header(whole))
    for cut in (data[:-1], data[:-2], data[:-5], thumbnail[:-2], data[:3], data[:20]):
        with pytest.raises(Unreadable, match=r"no end|header cannot be read"):
            check_jpeg(cut, jpeg_header(cut))


@pytest.mark.parametrize(
    "stream",
    [
        saved("JPEG"),
        saved("JPEG", progressive=True),
        saved("JPEG2000", no_jp2=True),
        saved("JPEG2000"),  # inside boxes
        b"\xff\xd8\xff\xf7"
        + struct.pack(">HBHHB", 11, 8, 5, 7, 1)
        + b"\1\x11\0"
        + b"\xff\xda\0\x02..\xff\xd9",  # JPEG-LS
        b"\xff\xd8\xff\xff\xff\xc3" + FRAME_HEADER + b"\xff\xda\xff\xd9",  # fill
    ],
)
def test_check_codestream__size(stream: bytes) -> None:
    check_codestream(stream, 7, 5, 1)
    check_codestream(stream + bytes(13), 7, 5, 1)
    for size in ((7, 6, 1), (8, 5, 1), (5, 7, 1), (7, 5, 3)):
        with pytest.raises(Unreadable, match=f"says {size[0]} x {size[1]} pixels of {size[2]} sample"):
            check_codestream(stream, *size)
    with pytest.raises(Unreadable, match="ends inside"):
        check_codestream(stream[:-2], 7, 5, 1)


@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xe0\0\1\0\0", b"\xff\x4f\xff\x51\0"]
)
def test_check_codestream__says_nothing(start: bytes) -> None:
    with pytest.raises(Unreadable, match="does not start as one"):
        check_codestream(start + b"\xff\xd9", 7, 5, 1)
