"""Encoders to evidence."""
