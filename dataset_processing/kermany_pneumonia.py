"""The same as `medmoco prepare kermany_pneumonia`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "kermany_pneumonia")
