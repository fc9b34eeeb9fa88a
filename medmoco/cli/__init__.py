"""The command line: arguments in, one function call, words out.

One module for each panel of the help. Torch, pandas and the rest are imported inside the commands that need them, so
that `medmoco --help` answers at once.
"""

from __future__ import annotations

from medmoco.cli.program import app, main

__all__ = ["app", "main"]
