"""Public functions that join several subpackages; the others are public where they are, see `medmoco/__init__.pyi`."""
