"""The same as `medmoco prepare dicom_tree`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "dicom_tree")
