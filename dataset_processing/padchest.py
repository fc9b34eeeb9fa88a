"""The same as `medmoco prepare padchest`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "padchest")
