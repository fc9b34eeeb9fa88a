"""Public functions that join several rooms; the others are public where they are, see `medmoco/__init__.pyi`."""
