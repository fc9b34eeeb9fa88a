"""Classifiers: fine-tuning, prediction and external validation."""
