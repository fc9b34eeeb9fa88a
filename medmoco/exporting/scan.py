"""Refuse an export that identifies a person or a machine: every byte is searched for names, also in packed content.

Manifests have millions of names, and files hundreds of megabytes: an Aho-Corasick automaton finds the first eight bytes
of all names in one pass, and full names are compared where it matches. Shorter names would occur by chance in weights,
which look like random bytes, so only text is searched for them.
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

from ahocorasick_rs import BytesAhoCorasick

from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError

LEAST_IN_TEXT, LEAST_IN_BINARY = 4, 8  # bytes in a name
_ID_COLUMNS = ("PatientID", "StudyID")
_COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_WORD = re.compile(rb"\w")
_NUMBER_BEFORE = re.compile(rb"(^|[\s\[,:.+\-|])$")

Names = Mapping[str, Iterable[str]]
"""Kind of name, as messages describe it -> names."""


def folder_names(*folders: Path) -> set[str]:
    """Return the spellings of folders that are long enough to identify a person or machine."""
    ways = {way for folder in folders for way in (folder, folder.absolute(), folder.resolve())}
    return {str(way) for way in ways if len(way.parts) > 2 or (len(way.parts) > 1 and len(str(way)) >= LEAST_IN_BINARY)}


def local_names(*folders: Path) -> dict[str, set[str]]:
    """Return the names that identify this machine and its user, with those of folders that the export read or wrote."""
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    with suppress(OSError, KeyError):  # a user id without a name
        users.add(getpass.getuser())
    host = socket.gethostname()
    hosts = {host, host.partition(".")[0], os.environ.get("HOSTNAME", "")}
    places = (Path.home(), Path.cwd(), Path(sys.prefix), Path(__file__).parents[2], Path(tempfile.gettempdir()))
    return {
        "the name of the user": users - {"root"},  # not a person
        "the name of this machine": hosts,
        "a folder of this machine": folder_names(*places, *folders),
        "a trace of program code": {"site-packages", "dist-packages", "Traceback (most recent", 'File "/', ".py:"},
    }


def manifest_names(splits: Iterable[Split]) -> dict[str, set[str]]:
    """Return the names that identify images and patients in the rows of a manifest."""
    paths: set[str] = set()
    ids: set[str] = set()
    for split in splits:
        paths.update(split.table["Path"])
        for column in _ID_COLUMNS:
            if column in split.table:
                ids.update(split.table[column].dropna())
    files = {path.replace("\\", "/").rpartition("/")[2] for path in paths}
    stems = {name.partition(".")[0] for name in files}
    # A file name such as image.png does not identify a patient.
    telling = {name for name in files | stems if any(letter.isdigit() for letter in name)}
    return {"the Path of a row": paths | telling, "the id of a patient or study": ids}


def refuse_names(folder: Path, names: Names) -> None:
    """Refuse an export in which a file contains a name.

    Raises:
        CheckpointError: gives the file and the kind of name, not the name.
    """
    search = Search(names)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        inside = file.relative_to(folder).as_posix()
        found = search.text(inside.encode()) or search.content(file.read_bytes())
        if found:
            raise CheckpointError(
                f"{inside} contains {found}, which must not leave this machine; nothing was exported.\n"
                "If it is a word that you chose yourself, such as a label or a licence, choose another;\n"
                "otherwise please report this with the backbone and the format."
            )


class Search:
    """Names to search for, prepared once for all files."""

    def __init__(self, names: Names) -> None:
        encoded = {name.encode(): kind for kind, words in names.items() for name in words}
        self._kinds = {name: kind for name, kind in encoded.items() if len(name) >= _least(name)}
        self._lengths = sorted({len(name) for name in self._kinds})
        # Only the first bytes: an automaton of whole Paths would take five times as long to build.
        self._starts = BytesAhoCorasick({name[:LEAST_IN_BINARY] for name in self._kinds})

    def content(self, content: bytes) -> str | None:
        """Return the kind of a name in the bytes of a file or in its packed content; None if there is none."""
        return next((found for found in map(self._one, _unpacked(content)) if found), None)

    def text(self, content: bytes) -> str | None:
        """Return the kind of a name that is a whole word in a text; None if there is none."""
        return next((self._kinds[content[place]] for place in self._found(content) if _is_word(content, place)), None)

    def _one(self, content: bytes) -> str | None:
        if _is_text(content):
            return self.text(content)
        return next((self._kinds[content[place]] for place in self._found(content, LEAST_IN_BINARY)), None)

    def _found(self, content: bytes, least: int = LEAST_IN_TEXT) -> Iterator[slice]:
        """Yield the place of every name of at least `least` bytes."""
        for _, start, _ in self._starts.find_matches_as_indexes(content, overlapping=True):
            fitting = (length for length in self._lengths if least <= length <= len(content) - start)
            places = (slice(start, start + length) for length in fitting)
            yield from (place for place in places if content[place] in self._kinds)


def _least(name: bytes) -> int:
    """Return how long a name must be to identify anyone: short numbers do not."""
    return LEAST_IN_BINARY if name.isdigit() else LEAST_IN_TEXT


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_word(content: bytes, place: slice) -> bool:
    """Return whether a name is a whole word, and not a plain number if it consists of digits."""
    name, before, after = content[place], content[max(0, place.start - 1) : place.start], content[place.stop :][:1]
    for outside, inside in ((before, name[:1]), (after, name[-1:])):
        if _WORD.match(outside) and _WORD.match(inside):
            return False
    return not (name.isdigit() and _NUMBER_BEFORE.search(before))


def _unpacked(content: bytes) -> Iterator[bytes]:
    """Yield the bytes or, if they are packed, the content: decompressed, or the members of archives and their names."""
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
    """Return the length in bytes of the JSON header after the first eight bytes; 0 for other files."""
    length = int.from_bytes(content[:8], "little")
    return length if content[8:9] == b"{" and 8 + length <= len(content) else 0
