"""The same as `medmoco prepare siim_pneumothorax`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "siim_pneumothorax")
