"""The same as `medmoco prepare vindr_cxr`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "vindr_cxr")
