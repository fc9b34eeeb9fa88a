"""The same as `medmoco prepare nih_chest_xray14`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "nih_chest_xray14")
