"""Prove that no file of an export names a person or a place: a search of every byte, packed content included.

Names come by the million, from a manifest, and files by the hundred megabytes. So the first eight bytes of every name
stand in one table, which is asked about every position of a file at once; names are compared where it says yes. In
weights, whose bytes are as good as random, shorter names would turn up by chance; in text they are looked for too.
"""

from __future__ import annotations

import bz2
import getpass
import gzip
import io
import lzma
import os
import re
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError

LEAST_IN_TEXT, LEAST_IN_BINARY = 4, 8  # bytes of a name
_CHUNK = 2**24  # bytes searched at once
_TABLE_BITS = 24
# Source: Knuth, The Art of Computer Programming 3, section 6.4, multiplicative hashing; any two odd numbers would do.
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_ID_COLUMNS = ("PatientID", "StudyID")
_COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_WORD = re.compile(rb"\w")
_NUMBER_BEFORE = re.compile(rb"(^|[\s\[,:.+\-|])$")

Names = Mapping[str, Iterable[str]]
"""What a name is, in words -> names."""


def folder_names(*folders: Path) -> set[str]:
    """Return the ways to write folders that are long enough to be somebody's."""
    ways = {way for folder in folders for way in (folder, folder.absolute(), folder.resolve())}
    return {str(way) for way in ways if len(way.parts) > 2 or (len(way.parts) > 1 and len(str(way)) >= LEAST_IN_BINARY)}


def local_names(*folders: Path) -> dict[str, set[str]]:
    """Return what names this machine and its user.

    Args:
        folders: That the export had to do with.
    """
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    with suppress(OSError, KeyError):  # a user id without a name
        users.add(getpass.getuser())
    host = socket.gethostname()
    hosts = {host, host.partition(".")[0], os.environ.get("HOSTNAME", "")}
    places = (Path.home(), Path.cwd(), Path(sys.prefix), Path(__file__).parents[2], Path(tempfile.gettempdir()))
    return {
        "the name of the user": users - {"root"},  # nobody's own
        "the name of this machine": hosts,
        "a folder of this machine": folder_names(*places, *folders),
        "a trace of program code": {"site-packages", "dist-packages", "Traceback (most recent", 'File "/', ".py:"},
    }


def manifest_names(splits: Iterable[Split]) -> dict[str, set[str]]:
    """Return what names an image or a patient in the rows of a manifest."""
    paths: set[str] = set()
    ids: set[str] = set()
    for split in splits:
        paths.update(split.table["Path"])
        for column in _ID_COLUMNS:
            if column in split.table:
                ids.update(split.table[column].dropna())
    files = {path.replace("\\", "/").rpartition("/")[2] for path in paths}
    stems = {name.partition(".")[0] for name in files}
    # A file called image.png in a folder of its own names nobody.
    telling = {name for name in files | stems if any(letter.isdigit() for letter in name)}
    return {"the Path of a row": paths | telling, "the id of a patient or study": ids}


def refuse_names(folder: Path, names: Names) -> None:
    """Refuse an export with a file that holds a name.

    Raises:
        CheckpointError: says which file, and what the name is, not the name.
    """
    search = Search(names)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        inside = file.relative_to(folder).as_posix()
        found = search.text(inside.encode()) or search.content(file.read_bytes())
        if found:
            raise CheckpointError(
                f"{inside} holds {found}, which must not leave this machine; nothing was exported.\n"
                "Please report this with the backbone and the format; where it is a word that you chose yourself,\n"
                "such as a label or a licence, choose another."
            )


class Search:
    """Names to look for, prepared once for all files."""

    def __init__(self, names: Names) -> None:
        self._kinds = {name.encode(): kind for kind, words in names.items() for name in words if name}
        long = [name for name in self._kinds if len(name) >= LEAST_IN_BINARY]
        short = [name for name in self._kinds if LEAST_IN_TEXT <= len(name) < LEAST_IN_BINARY and not name.isdigit()]
        self._binary, self._text = _Table(long, LEAST_IN_BINARY), _Table(long + short, LEAST_IN_TEXT)

    def content(self, content: bytes) -> str | None:
        """Say what kind of name a file's bytes hold, at any depth of packing; None if none."""
        return next((found for found in map(self._one, _unpacked(content)) if found), None)

    def text(self, content: bytes) -> str | None:
        """Say what kind of name a text holds as a word of its own; None if none."""
        found = (content[start:end] for start, end in self._text.found(content) if _is_word(content, start, end))
        return self._kinds.get(next(found, b""))

    def _one(self, content: bytes) -> str | None:
        if _is_text(content):
            return self.text(content)
        return self._kinds.get(next((content[start:end] for start, end in self._binary.found(content)), b""))


class _Table:
    """Names by their first bytes.

    Args:
        names: Each at least `width` bytes.
        width: 4 or 8.
    """

    def __init__(self, names: list[bytes], width: int) -> None:
        self._width, self._type = width, np.dtype(f"<u{width}")
        self._names = frozenset(names)
        self._lengths = sorted({len(name) for name in names})
        self._keys = np.unique(np.frombuffer(b"".join(name[:width] for name in names), self._type))
        self._maybe = np.zeros((len(_FACTORS), 2**_TABLE_BITS), bool)
        for table, factor in zip(self._maybe, _FACTORS, strict=True):
            table[_hashed(self._keys, factor)] = True

    def found(self, content: bytes) -> Iterator[tuple[int, int]]:
        """Yield the start and the end of every name in any bytes."""
        for start in self._candidates(content):
            yield from (
                (start, start + length) for length in self._lengths if content[start : start + length] in self._names
            )

    def _candidates(self, content: bytes) -> Iterator[int]:
        """Yield where the first bytes of some name stand."""
        width = self._width
        for chunk in range(0, len(content) if self._keys.size else 0, _CHUNK):
            part = content[chunk : chunk + _CHUNK + width - 1]
            for offset in range(min(width, max(0, len(part) - width + 1))):
                windows = np.frombuffer(part, self._type, (len(part) - offset) // width, offset)
                places = np.flatnonzero(self._maybe[0][_hashed(windows, _FACTORS[0])])
                places = places[self._maybe[1][_hashed(windows[places], _FACTORS[1])]]
                nearest = np.searchsorted(self._keys, windows[places]).clip(max=self._keys.size - 1)
                places = places[self._keys[nearest] == windows[places]]
                yield from (chunk + offset + width * int(place) for place in places)


def _hashed(windows: NDArray[np.unsignedinteger], factor: np.uint64) -> NDArray[np.uint64]:
    return (windows.astype(np.uint64) * factor) >> np.uint64(64 - _TABLE_BITS)


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_word(content: bytes, start: int, end: int) -> bool:
    """Return whether letters and digits stop around a name, and a name of digits alone is not just a number."""
    before, after = content[max(0, start - 1) : start], content[end : end + 1]
    for outside, inside in ((before, content[start : start + 1]), (after, content[end - 1 : end])):
        if _WORD.match(outside) and _WORD.match(inside):
            return False
    return not (content[start:end].isdigit() and _NUMBER_BEFORE.search(before))


def _unpacked(content: bytes) -> Iterator[bytes]:
    """Yield bytes, and whatever is packed in them: members of archives with their names, compressed content."""
    for magic, unpack in _COMPRESSED.items():
        if content.startswith(magic):
            yield from _unpacked(unpack(content))
            return
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield b"\n".join([archive.comment, *(info.filename.encode() for info in archive.infolist())])
            yield from (part for info in archive.infolist() for part in (info.extra, info.comment))
            for info in archive.infolist():
                yield from _unpacked(archive.read(info))
        return
    header = _safetensors_header(content)
    if header:
        yield content[8 : 8 + header]
        yield content[8 + header :]
        return
    yield content


def _safetensors_header(content: bytes) -> int:
    """Return how many bytes of JSON stand between the first eight bytes and the tensors; 0 in other files."""
    length = int.from_bytes(content[:8], "little")
    return length if content[8:9] == b"{" and 8 + length <= len(content) else 0
