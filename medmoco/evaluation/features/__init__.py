"""Frozen encoders to features, and probes on them."""
