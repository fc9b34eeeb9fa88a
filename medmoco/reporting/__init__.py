"""Runs to a page that a clinical group reads."""
