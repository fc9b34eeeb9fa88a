"""Read tables from .gz and .zip with a size limit, and write them reproducibly."""

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
    """Return the largest size, in bytes, to which a compressed file of `size` bytes may inflate.

    Real tables inflate by factors of 5 to 50; deflate allows 1,000, which malicious files use.
    """
    return max(2**28, 100 * size)


def read_bytes(path: Path) -> bytes:
    """Return a file's content, decompressed if its name ends in .gz or .zip.

    Raises:
        ManifestError: the file cannot be opened, is damaged, inflates too much, or is a .zip of several files.
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
        raise ManifestError(f"{path}: cannot be decompressed; the file is damaged or not a {path.suffix}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened: {error.strerror}") from None
    if len(content) > limit:
        raise ManifestError(
            f"{path}: its {size} bytes decompress to more than {limit}; decompress it yourself if you trust it"
        )
    return content


def _read_only_member(path: Path, limit: int) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [
            item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")
        ]
        if len(members) != 1:
            raise ManifestError(f"{path}: contains {len(members)} files instead of one table; unpack the table first")
        with archive.open(members[0]) as stream:
            return stream.read(limit + 1)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV without the index; compressed if the name ends in .gz, without a timestamp or name inside."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.10g").encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
            stream.write(content)
        content = buffer.getvalue()
    path.write_bytes(content)
