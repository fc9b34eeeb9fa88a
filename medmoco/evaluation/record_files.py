"""Files and tables of records; files are written and read by the records' own classes.

A file is a JSON list of plain objects (external.json: an object by label), so `pandas.read_json` reads it too. Every
object carries the version of its format; files from before there were versions still load, newer ones are refused.
A field that does not apply to a record is left out of its object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from medmoco.errors import CheckpointError
from medmoco.evaluation.records import VERSION, Record
from medmoco.utils.files import replacing

AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_records(file: Path, records: Sequence[Record] | Mapping[str, Record]) -> None:
    """Write a list of records, or records by name, so that a reader never sees half of it."""
    if isinstance(records, Mapping):
        _write(file, {name: _as_json(record) for name, record in records.items()})
    else:
        _write(file, [_as_json(record) for record in records])


def write_record(file: Path, record: Record) -> None:
    """Write a single record."""
    _write(file, _as_json(record))


def _write(file: Path, content: Any) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _as_json(record: Record) -> dict[str, Any]:
    return {"version": record.version} | record.model_dump(exclude_unset=True)


def read_records(file: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    """Read a list of records.

    Raises:
        CheckpointError: the file is not there, damaged, or written by a newer version.
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
                f"{name} was written by a newer medmoco: its records have {newer['ctx']['error']}, and this one reads"
                f" up to {VERSION}.\nUpdate medmoco, or evaluate again with this one."
            ) from None
        place = ", ".join(str(part) for part in findings[0]["loc"])
        raise CheckpointError(
            f"{name} is damaged: {f'{place}: ' if place else ''}{findings[0]['msg']}.\n"
            "Delete it, or run the command again that writes it."
        ) from None


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each record; fields of fields become columns such as "leakage.train.images"."""
    frame = pd.json_normalize([record.model_dump(exclude={"version"}) for record in records])
    first = [name for name in ("label", "split", "method", "encoder") if name in frame]
    return frame[[*first, *frame.columns.drop(first)]]
