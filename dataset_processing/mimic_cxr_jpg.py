"""The same as `medmoco prepare mimic_cxr_jpg`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "mimic_cxr_jpg")
