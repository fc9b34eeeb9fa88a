"""`python -m medmoco.cli`, which is how processes are started."""

from __future__ import annotations

from medmoco.cli.program import main

if __name__ == "__main__":
    main()
