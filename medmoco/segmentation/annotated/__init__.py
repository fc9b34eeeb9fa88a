"""Annotated images: canvases with class numbers on one grid, and training crops of both."""
