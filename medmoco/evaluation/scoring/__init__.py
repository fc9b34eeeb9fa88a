"""Encoders and controls to scores and differences."""
