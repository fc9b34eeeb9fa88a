"""The same as `medmoco prepare rsna_pneumonia`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "rsna_pneumonia")
