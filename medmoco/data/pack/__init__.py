"""Canvases decoded once."""
