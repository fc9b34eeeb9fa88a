"""The command line: each command parses arguments, calls one function and prints the result.

One module per panel of the help. Torch, pandas and other heavy libraries are imported inside the commands that need
them, so that `medmoco --help` is fast.
"""

from __future__ import annotations

from medmoco.cli.program import app, main

__all__ = ["app", "main"]
