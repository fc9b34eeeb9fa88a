"""Tables as bytes: read from .gz and .zip without being flooded, written the same way every time."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path

import pandas as pd

from medmoco.errors import ManifestError

PACKED = (".gz", ".zip")


def inflation_limit(size: int) -> int:
    """Return the most bytes that a compressed file of `size` bytes may hold.

    Real tables inflate 5 to 50 times; deflate itself allows 1,000 times, as a file made to do harm uses.
    """
    return max(2**28, 100 * size)


def read_bytes(path: Path) -> bytes:
    """Return a file's content, inflated if its name ends in .gz or .zip.

    Raises:
        ManifestError: it cannot be opened, is damaged, inflates out of proportion, or is a .zip of several files.
    """
    try:
        size = path.stat().st_size
        limit = inflation_limit(size)
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                content = stream.read(limit + 1)
        elif path.suffix == ".zip":
            content = _read_only_member(path, limit)
        else:
            return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise ManifestError(f"{path}: it cannot be inflated; the file is damaged or not {path.suffix}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened: {error.strerror}") from None
    if len(content) > limit:
        raise ManifestError(
            f"{path}: its {size} bytes inflate to more than {limit}; inflate it yourself if you trust it"
        )
    return content


def _read_only_member(path: Path, limit: int) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [
            item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")
        ]
        if len(members) != 1:
            raise ManifestError(f"{path}: it holds {len(members)} files, not one table; unpack the table beside it")
        with archive.open(members[0]) as stream:
            return stream.read(limit + 1)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV without the index; compressed if the name ends in .gz, and then without a time or name inside."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.10g").encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
            stream.write(content)
        content = buffer.getvalue()
    path.write_bytes(content)
