"""Read and write files of records, the folders that hold them, and convert records to tables.

A file is a JSON list of objects (external.json: an object by label), which `pandas.read_json` can read. Every object
has the version of its format; files without versions still load, newer ones are refused. Fields that do not apply to a
record are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from medmoco.errors import CheckpointError
from medmoco.evaluation.records import VERSION, EncoderRecord, Record
from medmoco.training.runlog import write_json

AnyRecord = TypeVar("AnyRecord", bound=Record)

PREDICTIONS = {
    "split": str, "row": int, "label": str, "method": str, "encoder": str, "draw": int, "target": float, "score": float,
}  # fmt: skip
"""Columns of predictions.csv. Rows are counted as in a spreadsheet; target is 1 or 0, or with method ridge a number."""


def write_records(file: Path, records: Sequence[Record] | Mapping[str, Record]) -> None:
    """Write a list of records, or records by name, so that readers never see an incomplete file."""
    if isinstance(records, Mapping):
        write_json(file, {name: _as_json(record) for name, record in records.items()})
    else:
        write_json(file, [_as_json(record) for record in records])


def write_record(file: Path, record: Record) -> None:
    """Write a single record."""
    write_json(file, _as_json(record))


def _as_json(record: Record) -> dict[str, Any]:
    return {"version": record.version} | record.model_dump(exclude_unset=True)


def read_records(file: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    """Read a list of records.

    Raises:
        CheckpointError: the file is missing, damaged, or written by a newer version.
    """
    found: tuple[AnyRecord, ...] = _read(file, TypeAdapter(tuple[kind, ...]))  # type: ignore[valid-type]
    return found


def read_named_records(file: Path, kind: type[AnyRecord]) -> dict[str, AnyRecord]:
    """Read records by name; raises as `read_records`."""
    found: dict[str, AnyRecord] = _read(file, TypeAdapter(dict[str, kind]))  # type: ignore[valid-type]
    return found


def read_record(file: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Read a single record; raises as `read_records`."""
    found: AnyRecord = _read(file, TypeAdapter(kind))
    return found


def _read(file: Path, adapter: TypeAdapter[Any]) -> Any:
    name = f"{file.parent.name}/{file.name}"
    try:
        return adapter.validate_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        findings = error.errors(include_url=False, include_input=False)
        newer = next((each for each in findings if each["loc"][-1:] == ("version",) and "ctx" in each), None)
        if newer and newer["type"] == "value_error":
            raise CheckpointError(
                f"{name} was written by a newer medmoco: its records have {newer['ctx']['error']}, but this version"
                f" reads up to {VERSION}.\nUpdate medmoco, or evaluate again with this version."
            ) from None
        location = ", ".join(str(part) for part in findings[0]["loc"])
        raise CheckpointError(
            f"{name} is damaged: {f'{location}: ' if location else ''}{findings[0]['msg']}.\n"
            "Delete it, or rerun the command that writes it."
        ) from None


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each record; nested fields become columns such as "leakage.train.images"."""
    records = list(records)
    unused = set() if any(getattr(record, "preprocessing", None) for record in records) else {"preprocessing"}
    frame = pd.json_normalize([record.model_dump(exclude={"version"} | unused) for record in records])
    first = [name for name in ("label", "split", "method", "encoder") if name in frame]
    return frame[[*first, *frame.columns.drop(first)]]


def shown_split(records: Sequence[EncoderRecord]) -> str:
    """Return the split to show by default: test if it was evaluated, else val."""
    present = {record.split for record in records}
    return "test" if "test" in present or "val" not in present else "val"


class SavedRecords:
    """Base of results: each field with records has its own file, and table.txt has the text."""

    _FILES: ClassVar[tuple[tuple[str, str, type[Record]], ...]]
    """Field, file, and class of its records; only the first is in the folders of all versions."""
    _OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Fields that are written only if they have records."""
    _NAMED: ClassVar[tuple[str, ...]] = ()
    """Fields that map names to records."""
    table: str

    @classmethod
    def _read(cls, folder: Path) -> dict[str, Any]:
        """Return the fields, empty for files that older versions did not write."""
        fields: dict[str, Any] = {}
        for number, (field, name, kind) in enumerate(cls._FILES):
            read = read_named_records if field in cls._NAMED else read_records
            fields[field] = read(folder / name, kind) if number == 0 or (folder / name).is_file() else ()
        text = folder / "table.txt"
        return {**fields, "table": text.read_text(encoding="utf-8") if text.is_file() else "", "folder": folder}

    def save(self, folder: Path) -> None:
        """Write the JSON files of the records and table.txt; those that do not apply are removed."""
        for field, name, _ in self._FILES:
            if getattr(self, field) or field not in self._OPTIONAL:
                write_records(folder / name, getattr(self, field))
            else:
                (folder / name).unlink(missing_ok=True)
        (folder / "table.txt").write_text(self.table, encoding="utf-8")
