"""Scores: predicted and true masks to metrics with intervals by patient, records and a table."""
