"""Scores of encoders and controls, and their differences."""
