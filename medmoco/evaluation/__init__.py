"""Frozen features to scores."""
