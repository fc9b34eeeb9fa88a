"""The same as `medmoco prepare image_folder`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "image_folder")
