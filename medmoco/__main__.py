"""`python -m medmoco`: the command `medmoco`, and the processes of a distributed run."""

from __future__ import annotations

from medmoco.cli.program import main

if __name__ == "__main__":
    main()
