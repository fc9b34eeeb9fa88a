"""The same as `medmoco prepare covid19_image_data`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "covid19_image_data")
