"""File to grey levels: formats, windows, limits."""
