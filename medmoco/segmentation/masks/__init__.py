"""Masks: cells of a manifest to class numbers, and class numbers to files."""
