"""Scores with patient-level intervals."""
