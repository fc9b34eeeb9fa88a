"""What disks and people do to checkpoints."""

from __future__ import annotations

from pathlib import Path


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def scramble_hash(file: Path) -> None:
    file.with_suffix(".pt.sha256").write_bytes(b"\xff\x00")


def lose_hash(file: Path) -> None:
    file.with_suffix(".pt.sha256").unlink()


HARM = [flip_bit, truncate, empty, scramble_hash, lose_hash]
