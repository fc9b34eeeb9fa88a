"""Tables as bytes: what is inflated, what is refused, and that writing twice gives the same file."""

import gzip
import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from medmoco.errors import ManifestError
from medmoco.utils import tables
from medmoco.utils.tables import inflation_limit, read_bytes, write_table

TEXT = b"Path,A\na.png,1\n"


def zipped(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def test_read_bytes__plain_gz_and_zip(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TEXT)
    (tmp_path / "a.csv.gz").write_bytes(
        gzip.compress(TEXT, mtime=0) + gzip.compress(b"b.png,0\n", mtime=0)
    )  # pigz writes several members
    zipped(tmp_path / "a.csv.zip", {"folder/": b"", "folder/a.csv": TEXT, "__MACOSX/a.csv": b"x"})
    assert read_bytes(tmp_path / "a.csv") == TEXT
    assert read_bytes(tmp_path / "a.csv.gz") == TEXT + b"b.png,0\n"
    assert read_bytes(tmp_path / "a.csv.zip") == TEXT


@pytest.mark.parametrize("suffix", [".gz", ".zip"])
def test_read_bytes__a_bomb_is_an_error(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "inflation_limit", lambda size: 10 * size)
    file = tmp_path / f"a{suffix}"
    for length, refused in [(200, False), (100_000, True)]:
        if suffix == ".gz":
            file.write_bytes(gzip.compress(b"0" * length, mtime=0))
        else:
            zipped(file, {"a": b"0" * length})
        if refused:
            with pytest.raises(ManifestError, match="decompress to more than"):
                read_bytes(file)
        else:
            assert len(read_bytes(file)) == length


def test_inflation_limit__lets_real_tables_through() -> None:
    assert inflation_limit(20) == 2**28
    assert inflation_limit(17_366_030) > 5 * 99_203_929  # PadChest's table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gz", b"not gzip"),
        ("a.gz", gzip.compress(TEXT, mtime=0)[:-6]),
        ("a.gz", gzip.compress(TEXT, mtime=0)[:12] + b"\xff" * 20),
        ("a.zip", b"not zip"),
    ],
)
def test_read_bytes__damaged(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be decompressed; the file is damaged"):
        read_bytes(tmp_path / name)


def test_read_bytes__absent_or_several(tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.gz", "a.zip"):
        with pytest.raises(ManifestError, match="cannot be opened: No such file"):
            read_bytes(tmp_path / name)
    zipped(tmp_path / "b.zip", {"a.csv": TEXT, "b.csv": TEXT})
    with pytest.raises(ManifestError, match="contains 2 files instead of one table"):
        read_bytes(tmp_path / "b.zip")


def test_write_table__same_bytes_whenever_and_wherever(tmp_path: Path) -> None:
    table = pd.DataFrame({"Path": ["ä.png", 'b,"c".png'], "Age": [7, 8], "x": [1.5, 225.084745762712]})
    (tmp_path / "other").mkdir()
    for file in (tmp_path / "a.csv.gz", tmp_path / "other" / "b.csv.gz", tmp_path / "a.csv"):
        write_table(file, table)
    packed = (tmp_path / "a.csv.gz").read_bytes()
    assert packed == (tmp_path / "other" / "b.csv.gz").read_bytes()
    assert packed[3:8] == b"\0" * 5  # no name, no time
    plain = (tmp_path / "a.csv").read_bytes()
    assert gzip.decompress(packed) == plain
    assert plain.decode() == 'Path,Age,x\nä.png,7,1.5\n"b,""c"".png",8,225.0847458\n'
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(plain)), table)
