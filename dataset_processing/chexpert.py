"""The same as `medmoco prepare chexpert`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "chexpert")
