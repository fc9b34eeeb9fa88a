"""Encoder to files that others load."""
