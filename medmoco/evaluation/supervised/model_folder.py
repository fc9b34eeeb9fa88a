"""The folder of a trained network: a file of weights, and a JSON file with what is needed to use them.

The JSON file has the SHA-256 of the weights, so that a damaged or mixed folder is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from medmoco.config import Settings, Tree
from medmoco.errors import CheckpointError, first_line
from medmoco.models.interop.state_dicts import plain_tensors
from medmoco.utils.files import replacing

Facts = TypeVar("Facts", bound=Settings)


@dataclass(frozen=True)
class ModelFolder:
    """Names of the files, and words for messages.

    Attributes:
        what: What the folder holds, such as "classifier".
        weights: Name of the file of weights.
        facts: Name of the JSON file.
        made_by: The commands that write it.
    """

    what: str
    weights: str
    facts: str
    made_by: str

    def write(self, folder: Path, state: Mapping[str, Tensor], kind: type[Settings], facts: Tree) -> None:
        """Write both files, replacing existing ones.

        Args:
            folder: The folder.
            state: The weights.
            kind: Class of the facts, with a field `sha256`.
            facts: The other fields.

        Raises:
            CheckpointError: the weights are not finite, or the folder cannot be written.
        """
        if not all(value.isfinite().all() for value in state.values()):
            raise CheckpointError(
                f"the {self.what}'s weights are not finite: its training diverged; nothing was written"
            )
        content = save(plain_tensors(state), metadata={"format": "pt"})
        tree = kind.model_validate({**facts, "sha256": hashlib.sha256(content).hexdigest()}).model_dump(mode="json")
        text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, written in ((self.weights, content), (self.facts, text.encode())):
                with replacing(folder / name, durable=True) as temporary:
                    temporary.write_bytes(written)
        except OSError as error:
            raise CheckpointError(f"the {self.what} folder {folder} cannot be written: {error.strerror}") from None

    def read_facts(self, folder: Path, kind: type[Facts]) -> Facts:
        """Read the JSON file.

        Raises:
            CheckpointError: it is missing, damaged, or was written by another version.
        """
        file = folder / self.facts
        try:
            return kind.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} is not a {self.what} folder: it has no {self.facts};\ncreate one with {self.made_by}"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            finding = error.errors()[0]
            place = ".".join(map(str, finding["loc"])) or self.facts
            reason = f"{place}: {finding['msg'].removeprefix('Value error, ')}"
        except (ValueError, RecursionError) as error:
            reason = first_line(error)
        raise CheckpointError(f"{file} is damaged or of another version of medmoco ({reason})")

    def read_weights(self, folder: Path, sha256: str) -> bytes:
        """Return the file of weights.

        Raises:
            CheckpointError: it cannot be read, or its SHA-256 is another.
        """
        file = folder / self.weights
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(
                f"{file} is damaged or does not belong to {self.facts}: its SHA-256 differs.\n"
                f"Copy the folder again, or train the {self.what} again."
            )
        return content

    def mismatch(self, folder: Path, expected: str) -> CheckpointError:
        """Return the error for weights that are not those of the network in the facts."""
        return CheckpointError(
            f"{folder / self.weights} does not match a {expected}.\n"
            "It may have been written with other versions of timm and MONAI."
        )
