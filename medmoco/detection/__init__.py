"""Boxes, detectors, and what pretraining is worth to them."""
