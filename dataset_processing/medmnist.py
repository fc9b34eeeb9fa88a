"""The same as `medmoco prepare medmnist`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "medmnist")
