"""One module per format; none imports another. `exporting.export.FORMATS` names them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from medmoco.config import Tree
from medmoco.exporting.subject import Subject


class Format(Protocol):
    """Functions of each module in this folder."""

    def refusal(self, subject: Subject) -> str | None:
        """Return in one line why the format cannot hold the subject; None if it can."""

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write one file, or one folder of files, into the folder of the export, and return the files.

        Raises:
            CheckpointError: a library cannot express the network.
        """

    def describe(self, subject: Subject) -> Tree:
        """Describe how to load the files; becomes part of preprocessing.json.

        Returns:
            library: Library that loads them.
            precisions: Names of torch types to try, "float32" first.
            load: Lines of Python for the card, from `images` to the outputs.
            Further keys for the format's loader in reload.py.
        """
