"""One module per format; none imports another, and `exporting.export.FORMATS` gives them their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from medmoco.exporting.subject import Subject

Record = dict[str, Any]


class Format(Protocol):
    """What a module of this folder has."""

    def refusal(self, subject: Subject) -> str | None:
        """Say in one line why the format cannot hold the subject; None if it can."""

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write into the export's folder one file, or one folder of files, and return the files.

        Raises:
            CheckpointError: a library cannot express the network.
        """

    def describe(self, subject: Subject) -> Record:
        """Say how it is loaded; becomes part of preprocessing.json.

        Returns:
            library: That loads it.
            precisions: Names of torch's types, "float32" first, that loading it back tries.
            load: Lines of Python for the card, which take `images` to the outputs.
            More, by the format, for its loader in reload.py.
        """
