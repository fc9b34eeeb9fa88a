"""The same as `medmoco prepare shenzhen_montgomery_tb`."""

from medmoco.cli import main

if __name__ == "__main__":
    main("prepare", "shenzhen_montgomery_tb")
