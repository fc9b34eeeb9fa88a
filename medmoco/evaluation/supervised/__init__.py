"""Classifiers: probes, fine-tuning, prediction, external validation."""
